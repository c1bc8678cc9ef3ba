/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image as the server's methods see it: pages by index, wherever they lie. Kinds of images (a file, the
 * live memory of a VM; a remote snapshot later) differ behind this table only. Its functions are called by
 * all workers at once.
 *
 * Whoever answers with a page loads its version first, then asks how it stands, whether it may hold data, and then
 * reads it: the bytes are at least as new as the version that goes with them (rounds.h), and whole (arriving.h). Then he
 * asks how it stands once more: it may have been lost, and its bytes with it.
 */
#ifndef PAGEFERRY_IMAGE_H
#define PAGEFERRY_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../gen/contract.h"
#include "../pageferry.h"
#include "../rpc/grpc.h"
#include "lost.h"

#define IMAGE_PAGE_BYTES ((uint64_t)PF_LIMIT_PAGE_BYTES)
#define IMAGES_MAX 256 /* served by one process */

struct image;
struct rounds;

enum image_standing {
    IMAGE_HERE = 0, /* to be read */
    IMAGE_AWAY,     /* it has not arrived: neither bytes nor zeros, until it has */
    IMAGE_LOST      /* poisoned: here, or before it came here */
};

#define IMAGE_READ_LOST 1 /* a read of one page: it can never be read again */

struct image_ops {
    /*
     * Reads the bytes of whole pages to `bytes`. 0; IMAGE_READ_LOST: only of one page alone; -PF_REASON_GOING_AWAY: not
     * now, or not all of them (they travel as LATER); -PF_REASON_MISMATCH: the image is not what it was (the call ends).
     */
    int (*read)(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes);
    /* How `page` stands, by what came before this image; *end comes down to where the pages end that stand so. NULL: all
     * are here, always. For others: image_standing. */
    enum image_standing (*standing)(const struct image *image, uint64_t page, uint64_t *end);
    /* The page may hold data; if not, it is zeros and need not be read. Never touches the page. */
    bool (*may_hold_data)(const struct image *image, uint64_t page);
    /* Where the pages end that are alike in this respect from `page` on: looked for up to `end`. */
    uint64_t (*alike_end)(const struct image *image, uint64_t page, uint64_t end);
    /* Version of `page`, loaded before its bytes are read; *end comes down to where its pages end, or
     * earlier. */
    uint64_t (*version)(const struct image *image, uint64_t page, uint64_t *end);
    /* The first page from `page` on, before `end`, whose version is above this one; `end` if there is none.
     * Costs little where pages are many and news are few. */
    uint64_t (*next_above)(const struct image *image, uint64_t version, uint64_t page, uint64_t end);
    void (*close)(struct image *image);
};

struct image {
    const struct image_ops *ops;
    char name[PF_LIMIT_IMAGE_NAME_BYTES_MAX + 1];
    uint64_t content_id;
    uint64_t page_count;
    uint64_t region_pages[PF_LIMIT_REGIONS_MAX];
    uint32_t region_count;
    bool live;
    _Atomic uint64_t as_of; /* newest settled version; grows with the rounds of a live image */
    struct rounds *rounds;  /* of a live image; NULL: it never changes */
    struct lost lost;
    _Atomic bool lost_news; /* a read has found one more, and nobody above has heard of it */
    _Atomic uint32_t users; /* who has taken it, and the table while it is in there */
    _Atomic bool removed;
    /* image_file.c's: */
    int fd;
    uint64_t *data_map; /* a bit a page: it lies, or begins or ends, in a data extent */
};

/* A file under a name, as pageferry_server_add_file has it. 0, or minus a reason with a sentence. */
int image_file_open(const char *name, int fd, const struct pageferry_image_facts *facts,
                    const uint64_t *region_pages, uint32_t region_count, struct image **image, char *error,
                    size_t error_bytes);

/* How `page` stands in an image of any kind, as the table's `standing` has it. */
enum image_standing image_standing(const struct image *image, uint64_t page, uint64_t *end);
/* The same of one that was looked at: the answer is no older than what was seen there. */
enum image_standing image_standing_since(const struct image *image, uint64_t page, uint64_t *end);
/* These pages are lost from now on, for ever. 0, or minus a reason with a sentence: OUT_OF_IMAGE; of a live image that is
 * frozen WRONG_PHASE. */
int image_lose(struct image *image, uint64_t first_page, uint64_t page_count, char *error, size_t error_bytes);
/* What image_ops.read returns, of so many pages, for what sparse_read has. */
int image_read_said(int rc, uint64_t page_count);

/* Name and regions (page_count is set) of any kind: 0, or minus a reason with a sentence. */
int image_set_name(struct image *image, const char *name, char *error, size_t error_bytes);
int image_set_regions(struct image *image, const uint64_t *region_pages, uint32_t region_count, char *error,
                      size_t error_bytes);

/*
 * images.c: those that are served, by name. Any thread may call these. An image that is taken out of service is there
 * until the last who has taken it has released it.
 */
struct images {
    pthread_mutex_t lock; /* zeroed: open */
    uint32_t count;
    struct image *image[IMAGES_MAX];
};

/* Takes the image over. 0, or minus a reason: the name is taken, there are too many. */
int images_add(struct images *images, struct image *image);
/* NULL: there is none of this name. Otherwise it stays until images_release. */
struct image *images_take(struct images *images, struct grpc_bytes name);
void images_release(struct image *image);
/* From now on nobody finds it. False: there is none of this name. */
bool images_remove(struct images *images, struct grpc_bytes name);
bool image_is_removed(const struct image *image);
/* One whose loss has not been told yet, until images_release: it has been now. NULL: there is none. */
struct image *images_take_lost_news(struct images *images);
/* All of them; nobody uses them any more. */
void images_close(struct images *images);

#endif
