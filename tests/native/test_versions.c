/* SPDX-License-Identifier: Apache-2.0 */
/* The map of versions alone: raised, asked, frozen, taken over; and what is no map, whatever it looks like. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "serve/versions.h"

#define PAGES 1300 /* three groups, the last one short */
#define CONTENT_ID 77
#define INCARNATION 5
#define BITS ((uint64_t)INCARNATION << 32)

static struct versions map;
static uint32_t model[PAGES]; /* the round of each page, told a second time */

static void begin(void)
{
    memset(model, 0, sizeof(model));
    CHECK_EQ(versions_create(PAGES, CONTENT_ID, INCARNATION, &map), 0);
}

static void end(void)
{
    versions_close(&map);
    versions_close(&map); /* harmless */
}

static void raise_pages(uint64_t first, uint64_t count, uint32_t round)
{
    versions_raise(&map, first, count, round);
    for (uint64_t page = first; page < first + count; page++)
        if (model[page] < round)
            model[page] = round;
}

static manifest_sum sum_of_model(uint64_t bits)
{
    manifest_sum sum = 0;

    for (uint64_t page = 0; page < PAGES; page++)
        sum += manifest_of(page, bits | model[page]);
    return sum;
}

static void agrees_with_the_model(uint64_t bits)
{
    for (uint64_t page = 0; page < PAGES; page++) {
        uint64_t run_end = PAGES;
        CHECK_EQ(versions_of(&map, page, &run_end), bits | model[page]);
        CHECK(run_end > page && run_end <= PAGES);
        for (uint64_t i = page; i < run_end; i++)
            CHECK_EQ(model[i], model[page]);
        CHECK(run_end == PAGES || run_end == page + VERSIONS_GROUP_PAGES || model[run_end] != model[page]);
    }
    CHECK(versions_sum(&map) == sum_of_model(bits));
}

static uint64_t next_of_model(uint32_t since, uint64_t page, uint64_t past)
{
    while (page < past && model[page] <= since)
        page++;
    return page;
}

static void test_a_new_map(void)
{
    begin();
    CHECK_EQ(versions_as_of(&map), BITS);
    CHECK(!versions_frozen(&map));
    CHECK(versions_sum(&map) == 0);
    CHECK_EQ(versions_next_above(&map, BITS, 0, PAGES), PAGES);
    CHECK_EQ(versions_next_above(&map, BITS - 1, 3, PAGES), 3); /* of an older incarnation: everything is news */
    CHECK_EQ(versions_next_above(&map, BITS + (UINT64_C(1) << 32), 3, PAGES), PAGES);
    agrees_with_the_model(BITS);
    end();
}

static void test_what_is_no_map_to_be(void)
{
    CHECK_EQ(versions_create(0, 1, 1, &map), -EINVAL);
    CHECK_EQ(versions_create(PF_LIMIT_IMAGE_PAGES_MAX + 1, 1, 1, &map), -EINVAL);
    CHECK_EQ(versions_create(1, 1, 0, &map), -EINVAL);
    CHECK_EQ(versions_create(1, 1, PF_LIMIT_INCARNATION_MAX + 1, &map), -EINVAL);
    versions_close(&map);
}

static void test_rounds_at_random(void)
{
    unsigned seed = 1;

    begin();
    for (int i = 0; i < 60; i++) {
        uint32_t round = versions_begin(&map);
        CHECK_EQ(round, i + 1);
        for (int j = rand_r(&seed) % 5; j > 0; j--) {
            uint64_t first = (uint64_t)rand_r(&seed) % PAGES, room = PAGES - first;
            raise_pages(first, (uint64_t)rand_r(&seed) % (room < 600 ? room : 600) + 1, round);
        }
        if (i % 3 != 0) { /* a round may be given up: its number stays used */
            versions_settle(&map, round);
            CHECK_EQ(versions_as_of(&map), BITS | round);
        }
    }
    agrees_with_the_model(BITS);
    for (int i = 0; i < 2000; i++) {
        uint32_t since = (uint32_t)rand_r(&seed) % 62;
        uint64_t page = (uint64_t)rand_r(&seed) % PAGES, past = (uint64_t)rand_r(&seed) % (PAGES + 1);
        uint64_t want = page < past ? next_of_model(since, page, past) : past;
        CHECK_EQ(versions_next_above(&map, BITS | since, page, past), want);
    }
    end();
}

static void test_a_version_only_grows(void)
{
    begin();
    raise_pages(4, 1, 9);
    versions_raise(&map, 3, 3, 7);
    model[3] = model[5] = 7;
    agrees_with_the_model(BITS);
    end();
}

static void test_the_digest_is_of_pages_and_versions(void)
{
    /* By hand: XXH3_128bits of two little-endian words a page, added modulo 2^128 */
    uint8_t digest[MANIFEST_BYTES];
    unsigned __int128 sum = 0;

    begin();
    raise_pages(0, PAGES, 1);
    raise_pages(17, 1, 2);
    for (uint64_t page = 0; page < PAGES; page++) {
        uint64_t words[2] = {page, BITS | (page == 17 ? 2 : 1)};
        XXH128_hash_t hash = XXH3_128bits(words, 16);
        sum += (unsigned __int128)hash.high64 << 64 | hash.low64;
    }
    manifest_digest(versions_sum(&map), digest);
    for (int i = 0; i < MANIFEST_BYTES; i++)
        CHECK_EQ(digest[i], (uint8_t)(sum >> (8 * i)));
    end();
}

/* ----------------------------------------------------------------------------------------------- taken over */

/* As a successor of this process would have it. */
static int adopt(uint64_t page_count, struct versions *next)
{
    int fd = dup(map.fd), rc = versions_adopt(fd, page_count, next);

    if (rc < 0)
        close(fd);
    return rc;
}

static void settle_a_few(void)
{
    raise_pages(0, PAGES, versions_begin(&map));
    raise_pages(600, 20, versions_begin(&map));
    versions_settle(&map, 2);
}

static void test_before_the_freeze_all_is_announced_again(void)
{
    struct versions next;

    begin();
    settle_a_few();
    CHECK_EQ(adopt(PAGES, &next), 0);
    CHECK_EQ(versions_as_of(&next), BITS + (UINT64_C(1) << 32));
    CHECK_EQ(next.header->content_id, CONTENT_ID);
    CHECK(versions_sum(&next) == 0);
    CHECK_EQ(versions_begin(&next), 1);
    CHECK_EQ(versions_next_above(&next, BITS | 2, 8, PAGES), 8); /* whoever has the old rounds: everything is news */
    versions_close(&next);
    end();
}

static void test_a_frozen_map_stays_as_it_is(void)
{
    struct versions next;

    begin();
    settle_a_few();
    versions_freeze(&map);
    memset(map.newest, 0, 3 * sizeof(*map.newest)); /* is not proven, and found again */
    CHECK_EQ(adopt(PAGES, &next), 0);
    CHECK(versions_frozen(&next));
    CHECK_EQ(versions_as_of(&next), BITS | 2);
    CHECK(versions_sum(&next) == versions_sum(&map));
    CHECK_EQ(versions_next_above(&next, BITS | 1, 0, PAGES), 600);
    versions_close(&next);
    CHECK_EQ(versions_renew(&map), 0); /* thawed */
    memset(model, 0, sizeof(model));
    CHECK(!versions_frozen(&map));
    CHECK_EQ(versions_as_of(&map), BITS + (UINT64_C(1) << 32));
    agrees_with_the_model(BITS + (UINT64_C(1) << 32));
    end();
}

enum damage {
    DAMAGE_MAGIC, DAMAGE_CONTENT, DAMAGE_COUNT, DAMAGE_PROOF, DAMAGE_INCARNATION, DAMAGE_BEGUN, DAMAGE_ROUND, DAMAGE_SUM,
    DAMAGE_RAISING_FROZEN, DAMAGE_NEVER_SETTLED, DAMAGE_END
};

static void damage(enum damage kind)
{
    struct versions_header *header = map.header;

    switch (kind) {
    case DAMAGE_MAGIC: header->magic++; break;
    case DAMAGE_CONTENT: header->content_id++; break;
    case DAMAGE_COUNT: header->page_count++; break;
    case DAMAGE_PROOF: header->proof ^= 1; break;
    case DAMAGE_INCARNATION: header->settled &= UINT32_MAX; break;
    case DAMAGE_BEGUN: header->begun = 1; break;
    case DAMAGE_ROUND: map.rounds[1299]++; break;
    case DAMAGE_SUM: header->sum++; break;
    case DAMAGE_RAISING_FROZEN: header->raising = header->frozen = 1; break;
    case DAMAGE_NEVER_SETTLED:
        header->settled = BITS;
        header->frozen = 1;
        break;
    case DAMAGE_END: break;
    }
}

static void test_a_damaged_map_is_refused(void)
{
    struct versions next;
    int other = memfd_create("empty", MFD_CLOEXEC);

    for (enum damage kind = 0; kind < DAMAGE_END; kind++) {
        begin();
        settle_a_few();
        damage(kind);
        CHECK_EQ(adopt(PAGES, &next), -EPROTO);
        end();
    }
    begin();
    CHECK_EQ(adopt(PAGES - 1, &next), -EPROTO);
    CHECK_EQ(adopt(0, &next), -EINVAL);
    CHECK_EQ(versions_adopt(other, PAGES, &next), -EPROTO);
    CHECK_EQ(versions_adopt(-1, PAGES, &next), -EBADF);
    close(other);
    end();
}

/* Whoever died while it raised: the sum says nothing, and is not relied on. */
static void test_a_map_in_the_making_is_taken_over(void)
{
    struct versions next;

    begin();
    settle_a_few();
    map.header->raising = 1;
    map.header->sum++;
    CHECK_EQ(adopt(PAGES, &next), 0);
    CHECK_EQ(next.header->raising, 0);
    CHECK(versions_sum(&next) == 0);
    versions_close(&next);
    end();
}

static void test_numbers_run_out(void)
{
    struct versions next;

    begin();
    map.header->begun = UINT32_MAX;
    CHECK_EQ(versions_begin(&map), 0);
    map.header->settled = (uint64_t)PF_LIMIT_INCARNATION_MAX << 32;
    CHECK_EQ(versions_renew(&map), -EOVERFLOW);
    CHECK_EQ(adopt(PAGES, &next), -EOVERFLOW);
    end();
}

/* ------------------------------------------------------------------------------------------------- at once */

static void *read_for_ever(void *argument)
{
    _Atomic bool *stop = argument;
    uint64_t held[PAGES] = {0}, page = 0;

    while (!*stop) {
        uint64_t as_of = versions_as_of(&map), run_end = PAGES, version = versions_of(&map, page, &run_end);
        CHECK(version >= held[page]); /* only grows */
        held[page] = version;
        CHECK(versions_next_above(&map, as_of, page, PAGES) >= page);
        page = run_end == PAGES ? 0 : run_end;
    }
    return NULL;
}

static void test_readers_meanwhile(void)
{
    _Atomic bool stop = false;
    pthread_t readers[2];

    begin();
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&readers[i], NULL, read_for_ever, &stop), 0);
    for (int i = 0; i < 300; i++) {
        uint32_t round = versions_begin(&map);
        raise_pages((uint64_t)(i * 37 % 1000), 200, round);
        versions_settle(&map, round);
    }
    stop = true;
    for (int i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    agrees_with_the_model(BITS);
    end();
}

int main(void)
{
    RUN(test_a_new_map);
    RUN(test_what_is_no_map_to_be);
    RUN(test_rounds_at_random);
    RUN(test_a_version_only_grows);
    RUN(test_the_digest_is_of_pages_and_versions);
    RUN(test_before_the_freeze_all_is_announced_again);
    RUN(test_a_frozen_map_stays_as_it_is);
    RUN(test_a_damaged_map_is_refused);
    RUN(test_a_map_in_the_making_is_taken_over);
    RUN(test_numbers_run_out);
    RUN(test_readers_meanwhile);
    return check_done();
}
