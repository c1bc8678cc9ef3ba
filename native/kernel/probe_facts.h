/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two halves of the probe to each other: probe.c makes userfaultfds and tries memory, machine.c reads what the
 * machine is set to. What both write a fact with.
 */
#ifndef PAGEFERRY_PROBE_FACTS_H
#define PAGEFERRY_PROBE_FACTS_H

#include "probe.h"

#define NEWER_KERNEL "use a newer kernel"
#define SEE_LOG "look for the cause in the kernel's log, and run this again"

__attribute__((format(printf, 4, 5))) void probe_found(struct probe_fact *fact, enum probe_verdict verdict,
                                                       const char *remedy, const char *format, ...);

/* From PAGEMAP_SCAN on. */
void probe_machine(struct probe *probe);

#endif
