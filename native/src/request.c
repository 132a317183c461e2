/* A connection's first request: whose it is, and for which satellite. As proto/request.py and daemon/edge/identity.py read it,
 * and without I/O.
 *
 * Nothing is refused here: the words for that are Python's. What Python would refuse or answer itself, and whatever is not
 * plain, is unusual. tests/native/test_request.py compares both.
 */
#include "bp.h"

#include <openssl/evp.h>
#include <string.h>
#include <strings.h>

#define BEARER "bearer "
#define BEARER_BYTES (sizeof BEARER - 1)
#define WHITE_SPACE " \t\n\r\v\f"
#define SERVER_NAME_BYTES 256 /* of a host, with NUL: DNS knows no longer ones */
#define NAME_MARKS "._-" /* within a name */

enum key { METHOD, PATH, ORG, ORG_DASHED, NAME, NAME_DASHED, TOKEN, TOKEN_DASHED, AUTHORIZATION, PARENT, STATE, KEYS };

static const char *const KEY_NAMES[KEYS] = {
    [METHOD] = ":method",
    [PATH] = ":path",
    [ORG] = "satellite_org",
    [ORG_DASHED] = "satellite-org",
    [NAME] = "satellite_name",
    [NAME_DASHED] = "satellite-name",
    [TOKEN] = "satellite_token",
    [TOKEN_DASHED] = "satellite-token",
    [AUTHORIZATION] = "authorization",
    [PARENT] = "traceparent",
    [STATE] = "tracestate",
};

struct found { /* the fields of one key */
    uint32_t count;
    struct bp_span value; /* of the last */
};

struct text {
    const char *at; /* NULL: there is none */
    size_t bytes;
};

/**
 * find_all() - Find the fields that matter
 * @fields: Fields
 * @found: Receives them by their keys; all counts are 0
 *
 * Thread: any
 */
static void find_all(const struct bp_fields *fields, struct found found[KEYS]) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < fields->count; i++) {
        uint32_t name_bytes = fields->sizes[2 * i], value_bytes = fields->sizes[2 * i + 1];
        for (unsigned key = 0; key < KEYS; key++) {
            if (strlen(KEY_NAMES[key]) == name_bytes && memcmp(fields->text + at, KEY_NAMES[key], name_bytes) == 0) {
                found[key].count++;
                found[key].value = (struct bp_span){at + name_bytes, value_bytes};
            }
        }
        at += name_bytes + value_bytes;
    }
}

/**
 * are_equal() - Compare two texts
 * @a: Text
 * @b: Text
 *
 * Return: whether they are the same
 * Thread: any
 */
static bool are_equal(struct text a, struct text b) { return a.bytes == b.bytes && memcmp(a.at, b.at, a.bytes) == 0; }

/**
 * take_one() - The value of a key that may be given once
 * @fields: Fields
 * @found: Fields of the key
 * @ret: Receives the value
 *
 * Return: false if it is given more often
 * Thread: any
 */
static bool take_one(const struct bp_fields *fields, const struct found *found, struct text *ret) {
    *ret = found->count ? (struct text){fields->text + found->value.at, found->value.bytes} : (struct text){0};
    return found->count <= 1;
}

/**
 * take_either() - The value of a key with two spellings
 * @fields: Fields
 * @found: Fields of both spellings, one after the other
 * @ret: Receives the value
 *
 * Return: false if one is given more than once, or if they differ
 * Thread: any
 */
static bool take_either(const struct bp_fields *fields, const struct found *found, struct text *ret) {
    struct text dashed;
    if (!take_one(fields, found, ret) || !take_one(fields, found + 1, &dashed))
        return false;
    if (!dashed.at)
        return true;
    if (ret->at && !are_equal(*ret, dashed))
        return false;
    *ret = dashed;
    return true;
}

/**
 * is_alphanumeric() - Whether a character is an ASCII letter or digit, in any locale
 * @c: Character
 *
 * Return: whether it is
 * Thread: any
 */
static bool is_alphanumeric(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/**
 * is_name() - Whether a text is the name of an org or a satellite: NAME of proto/request.py
 * @text: Text
 *
 * Return: whether it is
 * Thread: any
 */
static bool is_name(struct text text) {
    if (!text.bytes || text.bytes > BP_SATELLITE_NAME_BYTES)
        return false;
    for (size_t i = 0; i < text.bytes; i++)
        if (!is_alphanumeric(text.at[i]) &&
            (i == 0 || i == text.bytes - 1 || !memchr(NAME_MARKS, text.at[i], sizeof NAME_MARKS - 1)))
            return false;
    return true;
}

/**
 * set_satellite() - Write down a satellite
 * @org: Org
 * @name: Name
 * @ret: Receives it
 *
 * Return: false if one of them is not a name
 * Thread: any
 */
static bool set_satellite(struct text org, struct text name, struct bp_satellite *ret) {
    if (!is_name(org) || !is_name(name))
        return false;
    *ret = (struct bp_satellite){.org_bytes = (uint32_t)org.bytes, .name_bytes = (uint32_t)name.bytes};
    memcpy(ret->org, org.at, org.bytes);
    memcpy(ret->name, name.at, name.bytes);
    return true;
}

/**
 * lower() - Copy a server name in lower case
 * @server_name: Name
 * @ret: Receives it
 *
 * Return: false if it is too long, or has a character outside ASCII, whose lower case Python knows
 * Thread: any
 */
static bool lower(const char *server_name, char ret[SERVER_NAME_BYTES]) {
    size_t bytes = strlen(server_name);
    if (bytes >= SERVER_NAME_BYTES)
        return false;
    for (size_t i = 0; i <= bytes; i++) {
        char c = server_name[i];
        if ((unsigned char)c > 0x7f)
            return false;
        ret[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    return true;
}

/**
 * read_server_name() - Read NAME.ORG.DOMAIN: parse_server_name of daemon/edge/identity.py
 * @server_name: Server name, or NULL
 * @domain: Domain, or NULL
 * @ret: Receives the satellite; org_bytes is 0 if the name is not a satellite's
 *
 * Return: false if it is unusual
 * Thread: any
 */
static bool read_server_name(const char *server_name, const char *domain, struct bp_satellite *ret) {
    char labels[SERVER_NAME_BYTES], behind[SERVER_NAME_BYTES] = ".";
    ret->org_bytes = 0;
    if (!server_name || !domain)
        return true;
    if (!lower(server_name, labels))
        return false;
    size_t bytes = strlen(labels);
    if (bytes && labels[bytes - 1] == '.')
        labels[bytes - 1] = '\0';
    if (strlen(domain) > sizeof behind - 2) /* a server name below it would be longer than any */
        return true;
    strcpy(behind + 1, domain);
    char *end = strstr(labels, behind);
    if (!end || strlen(end) != strlen(behind))
        return true;
    *end = '\0';
    const char *dot = strchr(labels, '.');
    if (!dot || dot == labels || !dot[1] || strchr(dot + 1, '.'))
        return true;
    return set_satellite((struct text){dot + 1, strlen(dot + 1)}, (struct text){labels, (size_t)(dot - labels)}, ret);
}

/**
 * read_satellite() - Read which satellite is asked for, by metadata and server name
 * @fields: Fields
 * @found: The fields that matter
 * @named: The satellite of the server name; org_bytes is 0 if there is none
 * @ret: Receives the satellite
 *
 * Return: false if none is, or not beyond doubt
 * Thread: any
 */
static bool read_satellite(const struct bp_fields *fields, const struct found found[KEYS],
                           const struct bp_satellite *named, struct bp_satellite *ret) {
    struct text org, name;
    if (!take_either(fields, &found[ORG], &org) || !take_either(fields, &found[NAME], &name))
        return false;
    if (!org.at && !name.at) {
        *ret = *named;
        return named->org_bytes;
    }
    if (!org.at || !name.at || !set_satellite(org, name, ret))
        return false;
    return !named->org_bytes || memcmp(named, ret, sizeof *ret) == 0;
}

/**
 * strip() - Leave white space at both ends out
 * @text: Text
 *
 * Return: the text between
 * Thread: any
 */
static struct text strip(struct text text) {
    while (text.bytes && memchr(WHITE_SPACE, text.at[0], sizeof WHITE_SPACE - 1))
        text = (struct text){text.at + 1, text.bytes - 1};
    while (text.bytes && memchr(WHITE_SPACE, text.at[text.bytes - 1], sizeof WHITE_SPACE - 1))
        text.bytes--;
    return text;
}

/**
 * read_token() - Read the token, of `satellite_token` or `authorization: Bearer`
 * @fields: Fields
 * @found: The fields that matter
 * @ret: Receives the token
 *
 * Return: false if there is none that can be valid, or there are two
 * Thread: any
 */
static bool read_token(const struct bp_fields *fields, const struct found found[KEYS], struct text *ret) {
    struct text said;
    if (!take_either(fields, &found[TOKEN], ret) || !take_one(fields, &found[AUTHORIZATION], &said))
        return false;
    if (said.at && said.bytes >= BEARER_BYTES && strncasecmp(said.at, BEARER, BEARER_BYTES) == 0) {
        struct text bearer = strip((struct text){said.at + BEARER_BYTES, said.bytes - BEARER_BYTES});
        if (ret->at && !are_equal(*ret, bearer))
            return false;
        *ret = bearer;
    }
    if (!ret->at || !ret->bytes || ret->bytes > BP_TOKEN_BYTES)
        return false;
    for (size_t i = 0; i < ret->bytes; i++)
        if ((unsigned char)ret->at[i] > 0x7f)
            return false;
    return true;
}

/**
 * is_for_satellite() - Whether the method and the path are those of a call that the daemon does not answer itself
 * @fields: Fields
 * @found: The fields that matter
 * @rules: Rules of the port
 *
 * Return: whether they are
 * Thread: any
 */
static bool is_for_satellite(const struct bp_fields *fields, const struct found found[KEYS],
                             const struct bp_request_rules *rules) {
    struct text method, path;
    if (!take_one(fields, &found[METHOD], &method) || !take_one(fields, &found[PATH], &path))
        return false;
    if (!method.at || !are_equal(method, (struct text){"POST", 4}) || !path.bytes || path.at[0] != '/')
        return false;
    for (uint32_t i = 0; i < rules->own_count; i++) {
        size_t bytes = strlen(rules->own_paths[i]);
        if (path.bytes >= bytes && memcmp(path.at, rules->own_paths[i], bytes) == 0)
            return false;
    }
    return true;
}

/**
 * trace_field() - The value of a field of W3C Trace Context, if it is given once and fits
 * @found: Its fields
 * @most: The most bytes
 *
 * Return: the value; no bytes if there is none
 * Thread: any
 */
static struct bp_span trace_field(const struct found *found, uint32_t most) {
    return found->count == 1 && found->value.bytes <= most ? found->value : (struct bp_span){0};
}

bool bp_request_read(const struct bp_fields *fields, const char *server_name, const struct bp_request_rules *rules,
                     struct bp_request *ret) {
    struct found found[KEYS] = {0};
    struct bp_satellite named = {0};
    struct text token;
    unsigned digest_bytes = 0;
    find_all(fields, found);
    /* Several fields `tracestate` are one list, which Python puts together. */
    if (found[STATE].count > 1 || !is_for_satellite(fields, found, rules) || !read_token(fields, found, &token) ||
        !read_server_name(server_name, rules->domain, &named) ||
        !read_satellite(fields, found, &named, &ret->satellite))
        return false;
    if (!EVP_Digest(token.at, token.bytes, ret->digest, &digest_bytes, EVP_sha256(), NULL))
        return false;
    ret->traceparent = trace_field(&found[PARENT], BP_TRACEPARENT_BYTES);
    ret->tracestate = trace_field(&found[STATE], BP_TRACESTATE_BYTES);
    return digest_bytes == BP_DIGEST_BYTES;
}
