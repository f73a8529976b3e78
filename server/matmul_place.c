/* See matmul_place.h. */
#include "server/matmul_place.h"

#include <stdio.h>
#include <string.h>

static bool join(struct matmul_place *place, const char *base, const char *below)
{
    if (!base || base[0] != '/') return false;
    int length = snprintf(place->path, sizeof place->path, "%s%s", base, below);
    return length > 0 && (size_t)length < sizeof place->path;
}

void matmul_place_find(struct matmul_place *place, const char *option, const char *cache_home, const char *home)
{
    place->file = place->folder = NULL;
    place->homeless = false;
    if (!option || !option[0] || !strcmp(option, "none")) return;
    if (strcmp(option, "auto") != 0) {
        place->file = option;
    } else if (join(place, cache_home, "/millrace") || join(place, home, "/.cache/millrace")) {
        place->folder = place->path;
    } else {
        place->homeless = true;
    }
}
