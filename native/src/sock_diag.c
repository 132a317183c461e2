/* Asks the kernel by netlink who listens (sock_diag(7)). As daemon/sock_diag.py. */
#include "bp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IPV4_BYTES 4u
#define IPV6_BYTES 16u
#define NOT_OPEN (-1)

struct question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
};

union answer { /* a listener takes some hundred bytes, with the attributes that the kernel adds unasked */
    struct nlmsghdr header;
    char room[1024];
};

/**
 * ask() - Send a question, and receive its answer: the kernel answers within the send
 * @lookup: Lookup
 * @address: Address of a listener
 * @address_bytes: IPV4_BYTES or IPV6_BYTES
 * @port: Its port
 * @ret: Receives the answer
 *
 * Return: 0, or a negative errno
 * Thread: one
 */
static int ask(struct bp_lookup *lookup, const void *address, size_t address_bytes, uint16_t port, union answer *ret) {
    struct question question = {
        .header = {sizeof question, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, ++lookup->asked, 0},
        .body = {.sdiag_family = address_bytes == IPV4_BYTES ? AF_INET : AF_INET6,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = UINT32_MAX,
                 .id = {.idiag_sport = htons(port), .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}},
    };
    memcpy(question.body.id.idiag_src, address, address_bytes);
    if (lookup->fd == NOT_OPEN && (lookup->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)) < 0)
        return -errno;
    if (send(lookup->fd, &question, sizeof question, MSG_DONTWAIT) < 0)
        return -errno;
    struct sockaddr_nl sender = {0};
    socklen_t sender_bytes = sizeof sender;
    ssize_t bytes = recvfrom(lookup->fd, ret, sizeof *ret, MSG_DONTWAIT, (struct sockaddr *)&sender, &sender_bytes);
    if (bytes < 0)
        return -errno;
    bool is_whole = (size_t)bytes >= sizeof ret->header && ret->header.nlmsg_len <= (size_t)bytes;
    return is_whole && !sender.nl_pid && ret->header.nlmsg_seq == lookup->asked ? 0 : -EBADMSG;
}

/**
 * read_answer() - What an answer says
 * @answer: Answer, which is whole
 * @ret: Receives the listener
 *
 * Return: as bp_lookup_listener()
 * Thread: any
 */
static int read_answer(const union answer *answer, struct bp_listener *ret) {
    const void *body = NLMSG_DATA(&answer->header);
    uint32_t bytes = answer->header.nlmsg_len;
    struct nlmsgerr failed;
    struct inet_diag_msg found;
    if (answer->header.nlmsg_type == NLMSG_ERROR && bytes >= NLMSG_LENGTH(sizeof failed)) {
        memcpy(&failed, body, sizeof failed);
        return failed.error == -ENOENT ? 0 : failed.error < 0 ? failed.error : -EBADMSG;
    }
    if (answer->header.nlmsg_type != SOCK_DIAG_BY_FAMILY || bytes < NLMSG_LENGTH(sizeof found))
        return -EBADMSG;
    memcpy(&found, body, sizeof found);
    *ret = (struct bp_listener){found.idiag_inode, found.idiag_uid};
    return 1;
}

void bp_lookup_init(struct bp_lookup *lookup) { *lookup = (struct bp_lookup){.fd = NOT_OPEN}; }

int bp_lookup_listener(struct bp_lookup *lookup, const void *address, size_t address_bytes, uint16_t port,
                       struct bp_listener *ret) {
    union answer answer = {.header = {0}};
    if (address_bytes != IPV4_BYTES && address_bytes != IPV6_BYTES)
        return -EINVAL;
    int r = ask(lookup, address, address_bytes, port, &answer);
    if (r < 0)
        bp_lookup_close(lookup); /* an answer that comes later would be taken for the next question's */
    return r < 0 ? r : read_answer(&answer, ret);
}

void bp_lookup_close(struct bp_lookup *lookup) {
    if (lookup->fd != NOT_OPEN)
        (void)close(lookup->fd);
    lookup->fd = NOT_OPEN;
}
