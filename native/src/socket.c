/* What each socket of a connection is set to. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/**
 * bp__socket_prepare() - Make a socket non-blocking and without Nagle's delay; TCP finds a dead peer in about two minutes
 * @fd: Borrows; other sockets than TCP refuse the options, which is ignored
 *
 * Return: 0, or a negative errno if it is not a file descriptor
 * Thread: any
 */
int bp__socket_prepare(int fd) {
    static const int on = 1, idle_s = 60, interval_s = 10, probes = 6, user_timeout_ms = 120000;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
    return 0;
}

/**
 * bp__socket_limit_unsent() - Limit what the kernel takes ahead of what it can send (tcp(7), TCP_NOTSENT_LOWAT)
 * @fd: Borrows; other sockets than TCP refuse the option, which is ignored
 * @bytes: How much; 0: as net.ipv4.tcp_notsent_lowat says
 *
 * Thread: any
 */
void bp__socket_limit_unsent(int fd, uint32_t bytes) {
    if (bytes)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &bytes, sizeof bytes);
}
