/* SPDX-License-Identifier: Apache-2.0 */
/* Limits of memory cgroups: trees of both versions as hosts and containers show them, and this machine's own. */
#include "kernel/headroom.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

#define MIB (UINT64_C(1) << 20)
#define V2 "/sys/fs/cgroup"
#define V1 "/sys/fs/cgroup/memory"

static char root[] = "/tmp/pageferry-headroom-XXXXXX";

static void put(const char *path, const char *text)
{
    char full[1024];
    FILE *file;

    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    file = fopen(full, "we");
    CHECK(file != NULL && fputs(text, file) >= 0);
    if (file != NULL)
        fclose(file);
}

static int removed(const char *path, const struct stat *status, int kind, struct FTW *where)
{
    (void)status;
    (void)kind;
    (void)where;
    return remove(path);
}

/* A machine with 1000 MiB available, this process in `group`, that hierarchy mounted so. */
static void machine(const char *group, const char *mounts)
{
    strcpy(root + strlen(root) - 6, "XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    put("/proc/meminfo", "MemTotal:        2048000 kB\nMemFree:  12 kB\nMemAvailable:    1024000 kB\n");
    put("/proc/self/cgroup", group);
    put("/proc/self/mountinfo", mounts);
}

static struct headroom looked(void)
{
    struct headroom room;

    CHECK_EQ(headroom_look(root, &room), 0);
    CHECK_EQ(room.available_bytes / MIB, 1000);
    nftw(root, removed, 8, FTW_DEPTH | FTW_PHYS);
    return room;
}

static const char host_v2[] = "22 1 0:20 / /proc rw - proc proc rw\n"
                              "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

static void test_own_group(void)
{
    struct headroom room;

    machine("0::/pods/one\n", host_v2);
    put(V2 "/pods/one/memory.max", "104857600\n");
    put(V2 "/pods/one/memory.current", "31457280\n");
    put(V2 "/pods/memory.max", "max\n");
    put(V2 "/pods/memory.current", "41457280\n");
    room = looked();
    CHECK(room.grouped && room.limited);
    CHECK_EQ(room.limit_bytes / MIB, 100);
    CHECK_EQ(room.used_bytes / MIB, 30);
    CHECK_EQ(room.free_bytes / MIB, 70);
    CHECK(strcmp(room.group, V2 "/pods/one") == 0);
}

static void test_group_above_is_tighter(void)
{
    struct headroom room;

    machine("0::/pods/one\n", host_v2);
    put(V2 "/pods/one/memory.max", "104857600\n");
    put(V2 "/pods/one/memory.current", "31457280\n");
    put(V2 "/pods/memory.max", "209715200\n");
    put(V2 "/pods/memory.current", "199229440\n");
    room = looked();
    CHECK_EQ(room.free_bytes / MIB, 10);
    CHECK(strcmp(room.group, V2 "/pods") == 0);
}

static void test_no_limit(void)
{
    struct headroom room;

    machine("0::/pods\n", host_v2);
    put(V2 "/pods/memory.max", "max\n");
    put(V2 "/pods/memory.current", "41457280\n");
    room = looked();
    CHECK(room.grouped && !room.limited);
}

/* More is used than the limit allows, as after it was lowered. */
static void test_nothing_left(void)
{
    struct headroom room;

    machine("0::/\n", host_v2);
    put(V2 "/memory.max", "1048576\n");
    put(V2 "/memory.current", "41457280\n");
    room = looked();
    CHECK(room.limited);
    CHECK_EQ(room.free_bytes, 0);
    CHECK(strcmp(room.group, V2 "/") == 0 || strcmp(room.group, V2) == 0);
}

/* A container without a namespace of its own: its group's folder is mounted where the tree's top should be. */
static void test_part_of_the_tree_is_mounted(void)
{
    struct headroom room;

    machine("0::/docker/abc/inner\n", "30 22 0:26 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    put(V2 "/inner/memory.max", "max\n");
    put(V2 "/inner/memory.current", "1\n");
    put(V2 "/memory.max", "52428800\n");
    put(V2 "/memory.current", "10485760\n");
    room = looked();
    CHECK_EQ(room.free_bytes / MIB, 40);
    machine("0::/../elsewhere\n", host_v2);
    put(V2 "/memory.max", "52428800\n");
    put(V2 "/memory.current", "0\n");
    CHECK_EQ(looked().free_bytes / MIB, 50);
}

static void test_version_1(void)
{
    static const char mounts[] = "40 22 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
                                 "41 22 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                                 "42 22 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    static const char group[] = "9:name=systemd:/memory\n4:cpu,memory:/vms\n0::/other\n";
    struct headroom room;

    machine(group, mounts);
    put(V1 "/vms/memory.limit_in_bytes", "104857600\n");
    put(V1 "/vms/memory.usage_in_bytes", "20971520\n");
    put(V1 "/memory.limit_in_bytes", "9223372036854771712\n");
    put(V1 "/memory.usage_in_bytes", "20971520\n");
    room = looked();
    CHECK(room.limited);
    CHECK_EQ(room.free_bytes / MIB, 80);
    CHECK(strcmp(room.group, V1 "/vms") == 0);
    machine(group, mounts);
    put(V1 "/vms/memory.limit_in_bytes", "9223372036854771712\n");
    put(V1 "/vms/memory.usage_in_bytes", "20971520\n");
    room = looked();
    CHECK(room.grouped && !room.limited);
}

/* Nothing of the kind is mounted, or it is not memory that it governs, or what stands there makes no sense. */
static void test_nothing_to_be_seen(void)
{
    machine("0::/pods\n", "22 1 0:20 / /proc rw - proc proc rw\nno mount at all\n");
    CHECK(!looked().grouped);
    machine("0::/pods\n", host_v2);
    CHECK(!looked().grouped);
    machine("garbage\n:\n", host_v2);
    CHECK(!looked().grouped);
    machine("0::/pods\n", host_v2);
    put(V2 "/pods/memory.max", "many\n");
    put(V2 "/pods/memory.current", "1\n");
    CHECK(!looked().grouped);
}

static void test_no_meminfo(void)
{
    struct headroom room;

    CHECK_EQ(headroom_look("/nowhere", &room), -ENOENT);
}

static void test_this_machine(void)
{
    struct headroom room;

    CHECK_EQ(headroom_look("", &room), 0);
    CHECK(room.available_bytes > 0 && room.available_bytes < (uint64_t)sysconf(_SC_PHYS_PAGES) * 4096);
    CHECK(!room.limited || room.free_bytes + room.used_bytes >= room.limit_bytes);
}

int main(void)
{
    RUN(test_own_group);
    RUN(test_group_above_is_tighter);
    RUN(test_no_limit);
    RUN(test_nothing_left);
    RUN(test_part_of_the_tree_is_mounted);
    RUN(test_version_1);
    RUN(test_nothing_to_be_seen);
    RUN(test_no_meminfo);
    RUN(test_this_machine);
    return check_done();
}
