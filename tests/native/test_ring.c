/* SPDX-License-Identifier: Apache-2.0 */
/* The ring between two threads: order, bounds, and that no bell is left out. */
#include "base/ring.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "check.h"

#define CAPACITY 8
#define MANY 200000

struct entry {
    uint64_t number;
    uint64_t again; /* the same: a torn entry would differ */
};

static bool rings(const struct ring *ring)
{
    struct pollfd wait = {.fd = ring->bell_fd, .events = POLLIN};

    return poll(&wait, 1, 0) == 1;
}

static void bad_sizes_are_refused(void)
{
    struct ring ring;

    CHECK_EQ(ring_open(&ring, 0, 8), -EINVAL);
    CHECK_EQ(ring_open(&ring, 12, 8), -EINVAL);
    CHECK_EQ(ring_open(&ring, 8, 0), -EINVAL);
    ring_close(&ring); /* harmless */
    ring_close(&ring);
}

static void what_is_put_is_taken_in_order(void)
{
    struct ring ring;
    struct entry entry = {0};

    CHECK_EQ(ring_open(&ring, CAPACITY, sizeof(entry)), 0);
    CHECK(!ring_take(&ring, &entry));
    for (uint64_t round = 0; round < 5; round++) {
        for (uint64_t i = 0; i < CAPACITY; i++) {
            CHECK_EQ(ring_room(&ring), CAPACITY - i);
            entry.number = round * 100 + i;
            CHECK(ring_put(&ring, &entry));
        }
        CHECK(!ring_put(&ring, &entry)); /* full */
        CHECK_EQ(ring_room(&ring), 0);
        for (uint64_t i = 0; i < CAPACITY; i++) {
            CHECK(ring_take(&ring, &entry));
            CHECK_EQ(entry.number, round * 100 + i);
        }
        CHECK(!ring_take(&ring, &entry));
    }
    ring_close(&ring);
}

static void the_bell_rings_for_the_first_of_many(void)
{
    struct ring ring;
    struct entry entry = {0};

    CHECK_EQ(ring_open(&ring, CAPACITY, sizeof(entry)), 0);
    CHECK(!rings(&ring));
    CHECK(ring_put(&ring, &entry));
    CHECK(rings(&ring));
    ring_silence(&ring);
    CHECK(!rings(&ring));
    CHECK(ring_put(&ring, &entry)); /* the taker has not looked yet, and is awake */
    CHECK(!rings(&ring));
    CHECK(ring_take(&ring, &entry));
    CHECK(ring_take(&ring, &entry));
    CHECK(ring_put(&ring, &entry));
    CHECK(rings(&ring));
    ring_silence(&ring);
    ring_silence(&ring); /* of a silent bell: returns at once */
    ring_close(&ring);
}

static struct ring shared;

static void *put_many(void *argument)
{
    (void)argument;
    for (uint64_t number = 0; number < MANY;) {
        struct entry entry = {.number = number, .again = number};
        if (ring_put(&shared, &entry))
            number++;
    }
    return NULL;
}

/* The taker sleeps whenever it finds nothing: were a bell left out, this would never end. */
static void two_threads_lose_nothing(void)
{
    pthread_t thread;
    uint64_t next = 0, wrong = 0, sleeps = 0;

    CHECK_EQ(ring_open(&shared, CAPACITY, sizeof(struct entry)), 0);
    CHECK_EQ(pthread_create(&thread, NULL, put_many, NULL), 0);
    while (next < MANY) {
        struct pollfd wait = {.fd = shared.bell_fd, .events = POLLIN};
        struct entry entry;
        ring_silence(&shared);
        while (ring_take(&shared, &entry)) {
            wrong += entry.number != next || entry.again != next;
            next++;
        }
        if (next < MANY) {
            sleeps++;
            if (poll(&wait, 1, 20000) != 1) {
                CHECK(!"a bell was left out");
                break;
            }
        }
    }
    CHECK_EQ(next, MANY);
    CHECK_EQ(wrong, 0);
    CHECK(sleeps > 0);
    pthread_join(thread, NULL);
    ring_close(&shared);
}

int main(void)
{
    RUN(bad_sizes_are_refused);
    RUN(what_is_put_is_taken_in_order);
    RUN(the_bell_rings_for_the_first_of_many);
    RUN(two_threads_lose_nothing);
    return check_done();
}
