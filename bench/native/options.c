/* Command line and report of the load generator. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static const char *const MODES[] = {"rate", "closed", "connect", "idle"};
static const char *const TASKS[] = {"echo", "download", "upload", "call"};
static const char *const OUTCOME_NAMES[] = {"answered",        "wrong_bytes", "reset",
                                            "connection_lost", "refused",     "unanswered"};

static void fail(const char *option, const char *value) {
    fprintf(stderr, "load: cannot use %s %s\n", option, value);
    exit(2);
}

static unsigned choice(const char *option, const char *value, const char *const *names, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (!strcmp(names[i], value))
            return i;
    fail(option, value);
    return 0;
}

/* "rate:seconds,rate:seconds": one phase after the other. */
static void parse_phases(struct options *options, const char *text) {
    const char *at = text;
    for (options->phases = 0; *at && options->phases < MAX_PHASES; at += *at == ',') {
        struct phase *phase = &options->phase[options->phases++];
        char *end;
        phase->rate = strtod(at, &end);
        if (*end != ':')
            fail("--phases", text);
        phase->seconds = strtod(end + 1, &end);
        at = end;
    }
    if (*at || !options->phases)
        fail("--phases", text);
}

/* Sets an option of what is loaded. Returns false if it is another one. */
static bool parse_target(struct target *target, const char *option, const char *value) {
    if (!strcmp(option, "--port"))
        target->port = (uint16_t)atoi(value);
    else if (!strcmp(option, "--tls")) {
        target->tls = client_tls(value);
        if (!target->tls)
            fail(option, value);
    } else if (!strcmp(option, "--org"))
        target->org = value;
    else if (!strcmp(option, "--token")) {
        target->token = value;
        if (strlen(value) > MAX_TOKEN_BYTES)
            fail(option, value);
    } else if (!strcmp(option, "--path"))
        target->call.path = value;
    else if (!strcmp(option, "--body")) {
        if (!call_message(value, &target->call.body, &target->call.body_bytes))
            fail(option, value);
    } else if (!strcmp(option, "--answer")) {
        if (!call_message(value, &target->call.answer, &target->call.answer_bytes))
            fail(option, value);
    } else if (!strcmp(option, "--satellites"))
        target->satellites = value;
    else if (!strcmp(option, "--satellite-count"))
        target->satellite_count = (uint32_t)atoi(value);
    else if (!strcmp(option, "--source-addresses"))
        target->source_addresses = (uint32_t)atoi(value);
    else if (!strcmp(option, "--wait-settings"))
        target->wait_settings = atoi(value) != 0;
    else if (!strcmp(option, "--resume"))
        target->resume = atoi(value) != 0;
    else
        return false;
    return true;
}

/* Sets an option of the load itself. Exits with a message if there is no such option. */
static void parse_load(struct options *options, const char *option, const char *value) {
    if (!strcmp(option, "--mode"))
        options->mode = choice(option, value, MODES, 4);
    else if (!strcmp(option, "--task"))
        options->task = choice(option, value, TASKS, 4);
    else if (!strcmp(option, "--connections"))
        options->connections = (uint32_t)atoi(value);
    else if (!strcmp(option, "--streams"))
        options->streams = (uint32_t)atoi(value);
    else if (!strcmp(option, "--count"))
        options->count = (uint64_t)atoll(value);
    else if (!strcmp(option, "--echo-bytes"))
        options->echo_bytes = (uint32_t)atoi(value);
    else if (!strcmp(option, "--message-bytes"))
        options->message_bytes = (uint32_t)atoi(value);
    else if (!strcmp(option, "--messages"))
        options->messages = (uint64_t)atoll(value);
    else if (!strcmp(option, "--drain"))
        options->drain_s = atof(value);
    else if (!strcmp(option, "--seed"))
        options->seed = (uint64_t)atoll(value);
    else if (!strcmp(option, "--phases"))
        parse_phases(options, value);
    else if (!strcmp(option, "--cpu"))
        pin_to_cpu(atoi(value));
    else if (!strcmp(option, "--realtime"))
        run_realtime(atoi(value));
    else
        fail(option, value);
}

void options_parse(struct options *options, int argc, char **argv) {
    *options = (struct options){.connections = 1,
                                .streams = 1,
                                .echo_bytes = 128,
                                .message_bytes = 1 << 16,
                                .messages = 1024,
                                .drain_s = 5,
                                .seed = 1};
    options->target = (struct target){.org = "acme", .token = "none", .satellites = "bench", .source_addresses = 1};
    parse_phases(options, "0:1");
    for (int i = 1; i < argc; i += 2) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!parse_target(&options->target, option, value))
            parse_load(options, option, value);
    }
    if (options->echo_bytes < 9 || options->echo_bytes > MAX_ECHO_BYTES || options->message_bytes >= PATTERN_BYTES ||
        !options->connections || !options->target.port)
        fail("--echo-bytes, --message-bytes, --connections or", "--port");
    const struct call *call = &options->target.call;
    if (options->task == CALL && (!call->path || !call->body || !call->answer))
        fail("--task call without --path, --body and", "--answer");
}

static void print_phase(const struct phase *phase) {
    uint64_t ended = 0;
    printf("{\"rate\":%.17g,\"seconds\":%.17g,\"sent\":%llu,\"outcomes\":{", phase->rate, phase->seconds,
           (unsigned long long)phase->sent);
    for (int i = 0; i < UNANSWERED; i++) {
        printf("\"%s\":%llu,", OUTCOME_NAMES[i], (unsigned long long)phase->outcomes[i]);
        ended += phase->outcomes[i];
    }
    printf("\"%s\":%llu},\"latency_ns\":", OUTCOME_NAMES[UNANSWERED], (unsigned long long)(phase->sent - ended));
    histogram_print(&phase->latency, stdout);
    printf("}");
}

void report_print(const struct options *options, const struct report *report) {
    printf("{\"phases\":[");
    for (uint32_t i = 0; i < options->phases; i++) {
        printf("%s", i ? "," : "");
        print_phase(&options->phase[i]);
    }
    printf("],\"lateness_ns\":");
    histogram_print(&report->lateness, stdout);
    printf(",\"elapsed_s\":%.9f,\"moved_bytes\":%llu,\"resumed\":%llu,\"lost_connects\":%llu,\"begin_ns\":%llu,"
           "\"first_answer_ns\":%llu,\"last_answer_ns\":%llu,\"cpu_s\":%.6f,\"answers_ns\":[",
           (double)(report->end_ns - report->begin_ns) / 1e9, (unsigned long long)report->moved_bytes,
           (unsigned long long)report->resumed, (unsigned long long)report->refused_connects,
           (unsigned long long)report->begin_ns, (unsigned long long)report->first_answer_ns,
           (unsigned long long)report->last_answer_ns, report->cpu_s);
    for (uint64_t i = 0; report->answers_ns && i < options->count; i++)
        printf("%s%llu", i ? "," : "", (unsigned long long)report->answers_ns[i]);
    puts("]}");
    fflush(stdout);
}
