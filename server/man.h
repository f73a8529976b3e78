/* The manual page millrace(1), made from the same tables as --help: roff for `man`. Pure. */
#ifndef SERVER_MAN_H
#define SERVER_MAN_H

#include "runtime/base/buf.h"

/* The page as a whole, for `millrace man > millrace.1`. */
void man_print(struct buf *out);

#endif
