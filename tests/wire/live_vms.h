/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The live half of serve_file.c: processes whose memory is tracked (tests/native/tracked.h), served as live images, and
 * the sessions of them. Orders, each answered by a line; a number that is not 0 is minus a reason, with its sentence:
 *
 *     session ID IMAGE TOKEN_SHA256 RIGHTS PHASE CANCEL DIGEST    new, or changed; DIGEST -: none is told
 *     drop ID              the session
 *     event                KIND SESSION TARGET EPOCH VALUE PAGE_COUNT TEXT, or none
 *     freeze IMAGE         0 AS_OF DIRTY_PAGES DIGEST         thaw IMAGE        remove IMAGE
 *     write IMAGE PAGE VALUE    the process fills a page      punch IMAGE PAGE  it gives one back, as the shim does
 *     load IMAGE PAGE direct|cached PATH    it begins to read a page from a device or a file
 *     loaded IMAGE         that has ended
 *     pid IMAGE            of the process                     kill IMAGE        it dies
 */
#ifndef LIVE_VMS_H
#define LIVE_VMS_H

#include <stdbool.h>

#include "../../native/pageferry.h"

#define LIVE_WORDS_MAX 9

/* "NAME=PAGES": a process that is to be a live image. Before there are threads. False: it cannot be had here. */
bool live_vms_start(const char *option);
/* They are served. 0 or minus a reason. */
int live_vms_add(struct pageferry_server *server, char *error);
/* Whether it was one of the orders above: then it was answered. */
bool live_vms_obey(struct pageferry_server *server, char *const *words, int count);
void live_vms_end(void);

#endif
