/* SPDX-License-Identifier: Apache-2.0 */
/* pageferry.h's probe: the facts of kernel/probe.h, as a caller of the API sees them. */
#include <string.h>

#include "../kernel/probe.h"
#include "../pageferry.h"

_Static_assert((int)PROBE_GOOD == PAGEFERRY_VERDICT_GOOD && (int)PROBE_LESS == PAGEFERRY_VERDICT_LESS &&
                   (int)PROBE_BAD == PAGEFERRY_VERDICT_BAD && (int)PROBE_UNTRIED == PAGEFERRY_VERDICT_UNTRIED &&
                   (int)PROBE_FAILED == PAGEFERRY_VERDICT_FAILED,
               "verdicts are those of probe.h");
_Static_assert(PROBE_FACT_COUNT <= PAGEFERRY_FACTS_MAX, "there is room for all");
_Static_assert(PROBE_TEXT_BYTES == PAGEFERRY_TEXT_BYTES, "and so are their texts");

uint32_t pageferry_probe(int device_fd, uint32_t spare_pools, struct pageferry_fact *facts, uint32_t capacity)
{
    struct probe probe;

    probe_run(device_fd, spare_pools != 0, &probe);
    for (uint32_t i = 0; i < PROBE_FACT_COUNT && i < capacity; i++) {
        facts[i] = (struct pageferry_fact){
            .name = probe_word((enum probe_name)i),
            .help = probe_help((enum probe_name)i),
            .remedy = probe.facts[i].remedy,
            .verdict = probe.facts[i].verdict,
        };
        memcpy(facts[i].found, probe.facts[i].text, sizeof(facts[i].found));
    }
    return PROBE_FACT_COUNT;
}
