/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A restore for tests: a page server (ours, or a scripted one), a client, and a process that plays the VM (real_vm.h),
 * brought together through pageferry.h as the fault client does it. Every wait has a limit (20 s) after which the test
 * goes on and fails; none is a measure of time.
 */
#ifndef CLIENT_VM_H
#define CLIENT_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/stats.h"
#include "pageferry.h"
#include "client_server.h"
#include "pager/page.h"
#include "real_vm.h"

#define CLIENT_IMAGE "vm"

struct client_vm {
    struct real_vm real;
    struct server *server;
    struct pageferry_client *client;
    struct pageferry_vm *vm;
    struct pageferry_vm_options options;
    struct pageferry_region region;
    struct pageferry_event event; /* the last that client_wait has looked at */
    char address[64];
    int frames_end; /* the VMM's end of the hand-off socket */
    uint32_t seen[16]; /* events by kind */
};

/* True when a userfaultfd can be had here. */
bool client_may(void);

/* Of VMs that are prepared from now on: what else than the defaults (own, features). */
extern struct real_options client_more;

/* Defaults: memfd, no background; `frames` gives it a socket. Open it with client_open. */
bool client_prepare(struct client_vm *vm, enum real_memory memory, uint64_t pages, struct server *server, bool frames);
/* What pageferry_vm_open says; the server goes from now on. */
int client_open(struct client_vm *vm);
/* The VM and the client it came with; `shared`: the client is somebody else's. */
void client_end(struct client_vm *vm);
/* Takes events until one of this kind; false: it did not come. */
bool client_wait(struct client_vm *vm, uint32_t kind);
/* Takes the events that are there. */
void client_drain(struct client_vm *vm);
bool client_order(struct client_vm *vm, uint32_t kind, uint64_t value, uint64_t cookie);
/* ARM, and its answer. */
bool client_arm(struct client_vm *vm);
uint64_t client_counter(struct client_vm *vm, enum stats_counter which);
uint64_t client_state(struct client_vm *vm, uint64_t page);
/* Looks every millisecond or so. */
#define CLIENT_UNTIL(condition) \
    ({ \
        bool so_ = (condition); \
        for (int looks_ = 0; !so_ && looks_ < 20000; looks_++) { \
            client_moment(); \
            so_ = (condition); \
        } \
        so_; \
    })
void client_moment(void);

/* What READ answers for a page of the image: its word, or 0 where the image has a hole. */
int64_t client_word(uint64_t page);

/* What this process computes while it waits for nothing: a loop that does not sleep shows, whatever else the machine
 * does. */
bool client_busy(void);
/* Entries of a folder of /proc: threads of this process, or its open fds. */
uint32_t client_count(const char *folder);

#endif
