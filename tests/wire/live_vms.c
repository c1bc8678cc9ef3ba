/* SPDX-License-Identifier: Apache-2.0 */
/* See live_vms.h. */
#include "live_vms.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../native/tracked.h"

#define VMS_MAX 4
#define CONTENT_ID UINT64_C(0x11fe0000) /* and the number of the VM */
#define NAME_BYTES 32
#define HASH_BYTES 32
#define DIGEST_BYTES 16

static struct live_vm {
    char name[NAME_BYTES];
    struct tracked process;
} vms[VMS_MAX];
static int vm_count;

bool live_vms_start(const char *option)
{
    struct live_vm *vm = &vms[vm_count];
    const char *equals = strchr(option, '=');
    uint64_t pages = equals == NULL ? 0 : strtoull(equals + 1, NULL, 10);

    if (vm_count == VMS_MAX || pages == 0 || (size_t)(equals - option) >= sizeof(vm->name))
        return false;
    memcpy(vm->name, option, (size_t)(equals - option));
    vm_count++;
    return tracked_start(&vm->process, pages, pages, false);
}

int live_vms_add(struct pageferry_server *server, char *error)
{
    int rc = 0;

    for (int i = 0; rc == 0 && i < vm_count; i++) {
        struct tracked *process = &vms[i].process;
        struct pageferry_region region = {process->address, process->page_count * TRACKED_PAGE, 0};
        struct pageferry_live_options options = {
            .name = vms[i].name,
            .uffd = process->uffd,
            .ram_fd = process->ram_fd,
            .vmm_pid = process->pid,
            .vmm_pidfd = process->pidfd,
            .regions = &region,
            .region_count = 1,
            .content_id = CONTENT_ID + (uint64_t)i,
            .incarnation = 1,
            .arriving_fd = -1,
        };
        rc = pageferry_server_add_live(server, &options);
        memcpy(error, options.error, sizeof(options.error));
    }
    return rc;
}

void live_vms_end(void)
{
    for (int i = 0; i < vm_count; i++)
        tracked_end(&vms[i].process);
}

/* ------------------------------------------------------------------------------------------------------------- orders */

static struct tracked *find(const char *name)
{
    struct tracked *found = NULL;

    for (int i = 0; i < vm_count; i++)
        if (strcmp(vms[i].name, name) == 0)
            found = &vms[i].process;
    return found;
}

static bool read_hex(const char *text, uint8_t *bytes, size_t count)
{
    bool good = strlen(text) == 2 * count;

    for (size_t i = 0; good && i < count; i++)
        good = sscanf(text + 2 * i, "%2hhx", &bytes[i]) == 1;
    return good;
}

static void answer(int rc, const char *error)
{
    printf("%d %s\n", rc, error);
}

static void set_session(struct pageferry_server *server, char *const *words)
{
    struct pageferry_session told = {
        .session = words[1],
        .image = words[2],
        .rights = (uint32_t)atoi(words[4]),
        .phase = (uint32_t)atoi(words[5]),
        .cancel_requested = (uint32_t)atoi(words[6]),
        .frozen = words[7][0] != '-',
    };
    char error[PAGEFERRY_TEXT_BYTES] = "";

    if (!read_hex(words[3], told.token_sha256, HASH_BYTES) ||
        (told.frozen && !read_hex(words[7], told.manifest_digest, DIGEST_BYTES)))
        printf("unknown order\n");
    else
        answer(pageferry_server_set_session(server, &told, error, sizeof(error)), error);
}

static void print_event(struct pageferry_server *server)
{
    struct pageferry_server_event event;

    if (pageferry_server_event(server, &event) == 0)
        printf("none\n");
    else
        printf("%u %s %016" PRIx64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %s\n", event.kind, event.session, event.target,
               event.epoch, event.value, event.page_count, event.text);
}

static void freeze(struct pageferry_server *server, const char *name)
{
    struct pageferry_frozen frozen = {0};
    char error[PAGEFERRY_TEXT_BYTES] = "";
    int rc = pageferry_server_freeze(server, name, &frozen, error, sizeof(error));

    if (rc != 0) {
        answer(rc, error);
        return;
    }
    printf("0 %" PRIu64 " %" PRIu64 " ", frozen.as_of, frozen.dirty_pages);
    for (size_t i = 0; i < sizeof(frozen.digest); i++)
        printf("%02x", frozen.digest[i]);
    printf("\n");
}

/* What the process does. */
static bool act(struct tracked *process, char *const *words, int count)
{
    uint64_t page = count > 2 ? strtoull(words[2], NULL, 10) : 0;

    if (page >= process->page_count)
        return false;
    if (strcmp(words[0], "write") == 0 && count == 4)
        return tracked_do(process, TRACKED_WRITE, page, (uint8_t)atoi(words[3]));
    if (strcmp(words[0], "punch") == 0 && count == 3)
        return tracked_do(process, TRACKED_PUNCH, page, 0) && tracked_do(process, TRACKED_UNPROTECT, page, 0);
    if (strcmp(words[0], "load") == 0 && count == 5)
        return tracked_load(process, page, words[4], strcmp(words[3], "direct") == 0);
    if (strcmp(words[0], "loaded") == 0)
        return tracked_do(process, TRACKED_LOADED, 0, 0);
    if (strcmp(words[0], "kill") == 0) {
        tracked_kill(process);
        return true;
    }
    return false;
}

static bool is_act(const char *word)
{
    static const char *const acts[] = {"write", "punch", "load", "loaded", "kill"};
    bool found = false;

    for (size_t i = 0; i < sizeof(acts) / sizeof(acts[0]); i++)
        found = found || strcmp(word, acts[i]) == 0;
    return found;
}

bool live_vms_obey(struct pageferry_server *server, char *const *words, int count)
{
    struct tracked *process = count > 1 ? find(words[1]) : NULL;

    if (strcmp(words[0], "session") == 0 && count == 8)
        set_session(server, words);
    else if (strcmp(words[0], "drop") == 0 && count == 2)
        answer(pageferry_server_drop_session(server, words[1]), "");
    else if (strcmp(words[0], "event") == 0)
        print_event(server);
    else if (strcmp(words[0], "freeze") == 0 && count == 2)
        freeze(server, words[1]);
    else if (strcmp(words[0], "thaw") == 0 && count == 2)
        answer(pageferry_server_thaw(server, words[1]), "");
    else if (strcmp(words[0], "remove") == 0 && count == 2)
        answer(pageferry_server_remove(server, words[1]), "");
    else if (strcmp(words[0], "pid") == 0 && process != NULL)
        printf("%d\n", (int)process->pid);
    else if (is_act(words[0]) && process != NULL)
        printf("%s\n", act(process, words, count) ? "ok" : "failed");
    else
        return false;
    return true;
}
