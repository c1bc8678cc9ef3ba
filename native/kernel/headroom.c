/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The limits of memory cgroups, of version 2 and of version 1: see headroom.h. A limit above one's own group counts as
 * well, so all folders up to the one that is mounted are looked at.
 */
#include "headroom.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_LIMIT (UINT64_C(1) << 62) /* version 1 writes a number for none, which is larger */

struct version {
    const char *system;
    const char *limit;
    const char *used;
};

static const struct version first = {"cgroup", "memory.limit_in_bytes", "memory.usage_in_bytes"};
static const struct version second = {"cgroup2", "memory.max", "memory.current"};

static FILE *opened(const char *root, const char *path)
{
    char full[HEADROOM_PATH_BYTES * 2];

    return snprintf(full, sizeof(full), "%s%s", root, path) < (int)sizeof(full) ? fopen(full, "re") : NULL;
}

/* Is `word` one of a list with commas between? */
static bool among(const char *list, const char *word)
{
    size_t length = strlen(word);
    const char *found = list;

    while ((found = strstr(found, word)) != NULL) {
        if ((found == list || found[-1] == ',') && (found[length] == ',' || strchr(" \n", found[length]) != NULL))
            return true;
        found += length;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------- where the group lies */

/* "4:memory:/path" of version 1, else "0::/path" of version 2. */
static const struct version *own_group(const char *root, char *path)
{
    FILE *file = opened(root, "/proc/self/cgroup");
    const struct version *found = NULL;
    char *line = NULL;
    size_t capacity = 0;

    while (file != NULL && found != &first && getline(&line, &capacity, file) > 0) {
        char *controllers = strchr(line, ':');
        char *name = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (name == NULL)
            continue;
        *name++ = '\0';
        name[strcspn(name, "\n")] = '\0';
        if (strlen(name) >= HEADROOM_PATH_BYTES || (controllers[1] != '\0' && !among(controllers + 1, "memory")))
            continue;
        found = controllers[1] != '\0' ? &first : &second;
        strcpy(path, name);
    }
    free(line);
    if (file != NULL)
        fclose(file);
    return found;
}

/* "36 35 98:0 /its/root /mounted/at options... - system source its,options" */
static bool is_mount_of(char *line, const struct version *version, char **its_root, char **at)
{
    char *behind = strstr(line, " - "), *rest = NULL;
    char *system, *options;

    if (behind == NULL)
        return false;
    *behind = '\0';
    system = strtok_r(behind + 3, " ", &rest);
    strtok_r(NULL, " ", &rest);
    options = strtok_r(NULL, " ", &rest);
    for (int i = 0; i < 3; i++)
        strtok_r(i == 0 ? line : NULL, " ", &rest);
    *its_root = strtok_r(NULL, " ", &rest);
    *at = strtok_r(NULL, " ", &rest);
    return system != NULL && options != NULL && *at != NULL && strcmp(system, version->system) == 0 &&
           (version == &second || among(options, "memory"));
}

/* The folder of the own group, and how much of its name is the mount. A group outside of the mount, or of a mount that
 * shows only a part of the tree, as containers have it: the mount itself. */
static bool own_folder(const char *root, const struct version *version, const char *path, char *folder,
                       size_t *mount_length)
{
    FILE *file = opened(root, "/proc/self/mountinfo");
    bool found = false;
    char *line = NULL, *its_root, *at;
    size_t capacity = 0;

    while (file != NULL && !found && getline(&line, &capacity, file) > 0) {
        if (!is_mount_of(line, version, &its_root, &at))
            continue;
        size_t hidden = strcmp(its_root, "/") == 0 ? 0 : strlen(its_root);
        bool inside = strncmp(path, its_root, hidden) == 0 && strstr(path, "/..") == NULL;
        *mount_length = strlen(at);
        found = snprintf(folder, HEADROOM_PATH_BYTES, "%s%s", at, inside ? path + hidden : "") < HEADROOM_PATH_BYTES;
    }
    free(line);
    if (file != NULL)
        fclose(file);
    return found;
}

/* --------------------------------------------------------------------------------------------------------- limits */

/* UINT64_MAX: "max". */
static bool read_bytes(const char *root, const char *folder, const char *name, uint64_t *bytes)
{
    char path[HEADROOM_PATH_BYTES + 64], text[32] = "";
    FILE *file;
    bool known;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = opened(root, path);
    if (file == NULL)
        return false;
    known = fgets(text, sizeof(text), file) != NULL;
    fclose(file);
    if (known && strncmp(text, "max", 3) == 0)
        *bytes = UINT64_MAX;
    else
        known = known && sscanf(text, "%" SCNu64, bytes) == 1;
    return known;
}

static void look_at(const char *root, const struct version *version, const char *folder, struct headroom *headroom)
{
    uint64_t limit_bytes, used_bytes, free_bytes;

    if (!read_bytes(root, folder, version->limit, &limit_bytes) ||
        !read_bytes(root, folder, version->used, &used_bytes))
        return; /* the group at the top of version 2 has none */
    headroom->grouped = true;
    free_bytes = limit_bytes > used_bytes ? limit_bytes - used_bytes : 0;
    if (limit_bytes < NO_LIMIT && (!headroom->limited || free_bytes < headroom->free_bytes)) {
        headroom->limited = true;
        headroom->limit_bytes = limit_bytes;
        headroom->used_bytes = used_bytes;
        headroom->free_bytes = free_bytes;
        strcpy(headroom->group, folder);
    }
}

static int look_at_machine(const char *root, uint64_t *available_bytes)
{
    FILE *file = opened(root, "/proc/meminfo");
    uint64_t kib = 0;
    char line[128];
    int rc = file == NULL ? -errno : -ENODATA;

    while (rc == -ENODATA && file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1)
            rc = 0;
    if (file != NULL)
        fclose(file);
    *available_bytes = kib * 1024;
    return rc;
}

int headroom_look(const char *root, struct headroom *headroom)
{
    char path[HEADROOM_PATH_BYTES], folder[HEADROOM_PATH_BYTES];
    const struct version *version;
    size_t mount_length = 0;
    int rc;

    memset(headroom, 0, sizeof(*headroom));
    rc = look_at_machine(root, &headroom->available_bytes);
    version = rc == 0 ? own_group(root, path) : NULL;
    if (version == NULL || !own_folder(root, version, path, folder, &mount_length))
        return rc;
    for (size_t length = strlen(folder); length >= mount_length && length > 0;) {
        folder[length] = '\0';
        look_at(root, version, folder, headroom);
        while (length > 0 && folder[--length] != '/')
            ;
    }
    return rc;
}
