/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's hand-off at the source: its VMM waits, with its mmap held back, for the word that it is tracked. */
#include "../gen/contract.h"
#include "../kernel/frames.h"
#include "../pageferry.h"

int pageferry_handoff_accept(int fd)
{
    const struct frame accepted = {.magic = FRAME_MAGIC, .kind = FRAME_ACCEPTED};

    return frame_send(fd, &accepted) == 0 ? 0 : -PF_REASON_NO_VMM;
}
