/* --trusted: what a customer sends and is answered stays in this node's memory.
 *
 * No file and no other machine gets any of it: options that would hand it on or keep it (seal_check) are refused at
 * the start, and the process leaves no core and cannot be looked into by another process of its user. The log has none
 * of it in any mode (rule V5); the journal has counts and digests of keys. Swap is the system's: with MemorySwapMax=0 or
 * none at all, pages stay too. */
#ifndef SERVER_SEAL_H
#define SERVER_SEAL_H

#include "server/config.h"

/* ST_INVAL: an option beside --trusted that it excludes; err names it and why. ST_OK without --trusted. */
NODISCARD enum status seal_check(const struct config *config, struct error *err);

/* No core, also of the processes that this one starts; before threads. ST_IO: the system refuses. */
NODISCARD enum status seal_process(struct error *err);

#endif
