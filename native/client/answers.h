/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The answers of the urgent connection: a batch is checked whole, then each run of it goes to the engine. What is no
 * good, or cannot be read at the server now, is asked again with a growing delay.
 */
#ifndef PAGEFERRY_ANSWERS_H
#define PAGEFERRY_ANSWERS_H

#include "urgent.h"

/* One message of FetchPages. */
void answers_take(struct urgent *urgent, struct grpc_bytes message);

#endif
