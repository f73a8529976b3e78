/* millrace inspect FILE: what a model file holds. */
#include "runtime/model/inspect.h"
#include "server/cmd.h"

#include <stdio.h>

int cmd_inspect(const struct config *config)
{
    struct buf text;
    struct error err = {{0}};
    buf_init(&text, 0);
    enum status status =
        config->json ? model_inspect_json(config->model, &text, &err) : model_inspect(config->model, &text, &err);
    if (status == ST_OK && !buf_ok(&text)) status = error_set(&err, ST_NOMEM, "%s", status_text(ST_NOMEM));
    if (status == ST_OK)
        fwrite(text.data, 1, text.length, stdout);
    else
        fprintf(stderr, "millrace inspect: %s\n", err.message);
    buf_free(&text);
    return status == ST_OK ? 0 : 1;
}
