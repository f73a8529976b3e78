/* millrace health [URL]: whether a server is ready, as an exit code. For images without a shell. */
#include "server/cmd.h"
#include "server/http_call.h"

#include <stdio.h>
#include <string.h>

enum { NOT_READY = 1, USAGE = 2, ANSWER_BYTES_MAX = 65536, TIMEOUT_MS = 5000 };

static const char usage[] =
    "usage: millrace health [URL]\n\n"
    "Asks URL/readyz (http://127.0.0.1:8000 unless given) and prints the answer. Exit code 0: the server is ready;\n"
    "1: it is not, or does not answer within 5 s; 2: the URL is none.\n";

int cmd_health(int argc, char **argv)
{
    struct http_call call;
    struct buf answer;
    struct error err = {""};
    int http_status = 0;
    const char *url = argc > 0 ? argv[0] : "http://127.0.0.1:8000";
    if (argc > 1 || (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)) {
        bool help = argc == 1 && (!strcmp(url, "--help") || !strcmp(url, "-h"));
        (void)fputs(usage, help ? stdout : stderr);
        return help ? 0 : USAGE;
    }
    if (http_call_open(&call, &err) != ST_OK) {
        fprintf(stderr, "millrace health: %s\n", err.message);
        return NOT_READY;
    }
    call.timeout_ms = TIMEOUT_MS;
    call.answer_bytes_max = ANSWER_BYTES_MAX;
    buf_init(&answer, ANSWER_BYTES_MAX);
    enum status status = http_call_run(&call, url, "/readyz", NULL, &http_status, &answer, &err);
    if (status != ST_OK)
        fprintf(stderr, "millrace health: %s\n", err.message);
    else
        (void)fwrite(answer.data, 1, answer.length, stdout), (void)fputc('\n', stdout);
    buf_free(&answer);
    http_call_close(&call);
    if (status == ST_INVAL) return USAGE;
    return status == ST_OK && http_status == 200 ? 0 : NOT_READY;
}
