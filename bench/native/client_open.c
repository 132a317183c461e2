/* Opens connections of the load generator: socket, TLS, resumption. See client.h. */
#include "client.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static SSL_SESSION *session; /* the last one: every connection of a process goes to the same server */

static int keep_session(SSL *ssl, SSL_SESSION *fresh) {
    (void)ssl;
    SSL_SESSION_free(session);
    session = fresh;
    return 1;
}

SSL_CTX *client_tls(const char *ca_file) {
    SSL_CTX *tls = SSL_CTX_new(TLS_client_method());
    if (!tls || SSL_CTX_load_verify_locations(tls, ca_file, NULL) != 1)
        return NULL;
    /* The handshake's signature is verified. The chain is not: that would make the generator the bottleneck. */
    SSL_CTX_set_verify(tls, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(tls, keep_session);
    return tls;
}

void client_init(struct client *client, const struct target *target, uint32_t number, on_answer *answered) {
    *client = (struct client){.link.fd = -1, .target = target, .number = number, .answered = answered};
}

int client_connect(struct client *client, int epoll_fd) {
    const struct target *target = client->target;
    client->link = (struct link){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    if (client->link.fd < 0)
        return -errno;
    client->connected = client->greeted = client->settled = client->leaving = client->indexed = false;
    client->next_id = 1;
    client->open = 0;
    client->unacknowledged = 0;
    client->max_streams = 100; /* until the server's SETTINGS; the least that RFC 9113 §6.5.2 recommends */
    client->window = client->initial_window = DEFAULT_WINDOW;
    if (!client->slots && !(client->slots = calloc(SLOTS, sizeof *client->slots)))
        abort();
    (void)setsockopt(client->link.fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (target->source_addresses > 1) {
        (void)setsockopt(client->link.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + client->number % target->source_addresses);
        if (bind(client->link.fd, (struct sockaddr *)&address, sizeof address) < 0)
            return -errno;
    }
    address.sin_port = htons(target->port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(client->link.fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        return -errno;
    if (target->tls) {
        client->link.ssl = SSL_new(target->tls);
        if (!client->link.ssl)
            abort();
        SSL_set_fd(client->link.ssl, client->link.fd);
        SSL_set_tlsext_host_name(client->link.ssl, "localhost");
        SSL_set1_host(client->link.ssl, "localhost");
        SSL_set_alpn_protos(client->link.ssl, (const unsigned char *)"\x02h2", 3);
        SSL_set_connect_state(client->link.ssl);
        if (target->resume && session)
            SSL_set_session(client->link.ssl, session);
    }
    link_watch(&client->link, epoll_fd, EPOLLOUT, client);
    return 0;
}

bool client_resumed(const struct client *client) { return client->link.ssl && SSL_session_reused(client->link.ssl); }
