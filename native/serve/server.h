/* SPDX-License-Identifier: Apache-2.0 */
/* The handle behind pageferry.h's server half, for the two files that make it up: server.c and live.c. */
#ifndef PAGEFERRY_SERVER_H
#define PAGEFERRY_SERVER_H

#include "serve.h"

#define LISTENERS_MAX 16

struct pageferry_server {
    struct service service;
    struct watched listeners[LISTENERS_MAX];
    uint32_t listener_count;
    struct stats sum; /* of the workers', made when it is asked for */
};

/* Serves the image from now on, or closes it. 0, or minus a reason with a sentence. */
int server_add(struct pageferry_server *server, struct image *image, char *error, size_t error_bytes);

#endif
