/* SPDX-License-Identifier: Apache-2.0 */
/* The cases of kernel_cases.h. Whoever relies on one more fact of Linux adds it to `facts`. */
#include "kernel_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is true of small pages is true of huge ones of a pool, unless it says SMALL_PAGES; what is true of those alone says
 * HUGE. SMALL: a file system that can be filled. */
enum where {
    SHARED = 1,
    PRIVATE = 2,
    BOTH = 3,
    SMALL = 4,
    ANNOUNCED = 8,
    SMALL_PAGES = 16,
    HUGE = 32
};

struct fact {
    unsigned where;
    const char *name;
    const char *steps;
};

static const struct fact facts[] = {
    /* ------------------------------------------------------------------------------------------- which event comes */
    {BOTH, "an_absent_page_is_a_missing_fault", "read 2 -> sleeps; events -> missing 2; events -> none"},
    {SHARED, "a_cached_page_is_a_minor_fault",
     "foreign 2 a; read 2 -> sleeps; events -> minor 2; map 2 -> mapped 1, 0 reads a2"},
    {BOTH, "a_write_is_flagged",
     "write 2 w -> sleeps; events -> missing-write 2; copy 2 a -> mapped 1, 0 wrote; read 2 -> reads w2"},
    {SHARED, "a_write_to_a_cached_page_is_flagged",
     "foreign 2 a; write 2 w; events -> minor-write 2; map 2 -> mapped 1, 0 wrote; cache 2 -> w2"},
    {SHARED, "minor_says_no_more_than_that_something_is_there",
     "allocate 2; read 2; events -> minor 2; map 2 -> mapped 1, 0 reads zeros"},
    {SHARED, "a_touch_through_another_mapping_fills_a_hole",
     "alias 2 -> zeros; read 2 -> sleeps; events -> minor 2"},
    {SHARED, "a_missing_fault_may_be_on_a_page_that_is_cached_since",
     "read 2; populate 2 a -> mapped 1; events -> missing 2; copy 2 b -> already 0; "
     "map 2 -> mapped 1, 0 reads a2"},
    {SHARED, "a_minor_fault_may_be_on_a_hole",
     "foreign 2 a; read 2; discard 2; events -> minor 2; map 2 -> absent 0; "
     "zero 2 -> mapped 1, 0 reads zeros"},
    {SHARED, "a_finished_page_may_fault_again",
     "copy 2 a; reclaim 2; read 2 -> sleeps; events -> minor 2; map 2 -> mapped 1, 0 reads a2"},
    {SHARED, "continue_maps_for_writing",
     "foreign 2 a; map 2; write 2 w -> wrote; events -> none; cache 2 -> w2"},
    {BOTH, "a_zero_page_may_be_written",
     "zero 2 -> mapped 1; read 2 -> reads zeros; write 2 w -> wrote; read 2 -> reads w2"},
    /* ------------------------------------------------------------------------------------------- order and batches */
    {BOTH, "faults_are_read_oldest_first",
     "read 3; read 1; read 2; events -> missing 3, missing 1, missing 2"},
    {BOTH, "a_fault_that_comes_again_is_a_new_one", "read 1; read 2; wake 1; events -> missing 2, missing 1"},
    {BOTH, "a_batch_ends_where_the_room_does",
     "read 1; read 2; read 3; events 2 -> missing 1, missing 2; events 2 -> missing 3; events 2 -> none"},
    {BOTH, "n_threads_on_one_page_are_n_faults",
     "read 2; read 2; write 2 w; events -> missing 2, missing 2, missing-write 2"},
    {BOTH, "the_event_of_a_resolved_fault_vanishes",
     "read 2; copy 2 a -> mapped 1, 0 reads a2; events -> none"},
    {BOTH | ANNOUNCED, "faults_are_read_before_events",
     "dontneed 4 -> waits; read 2; events 1 -> missing 2; events -> remove 4+1, the removal ends"},
    {BOTH | ANNOUNCED, "an_older_removal_comes_behind_the_faults_of_its_batch",
     "dontneed 4 -> waits; read 2; read 3; events -> missing 2, missing 3, remove 4+1, the removal ends"},
    /* ---------------------------------------------------------------------------------------------------- who wakes */
    {BOTH, "one_copy_wakes_all_threads_of_a_page",
     "read 2; read 2; events; copy 2 a -> mapped 1, 0 reads a2, 1 reads a2"},
    {SHARED, "one_continue_wakes_all_threads_of_a_page",
     "read 2; read 2; read 3; events; populate 2 a; map 2 -> mapped 1, 0 reads a2, 1 reads a2; "
     "events -> none"},
    {BOTH, "a_call_wakes_no_other_page", "read 1; read 2; read 3; events; copy 2 a -> mapped 1, 1 reads a2"},
    {BOTH, "partial_progress_wakes_who_slept_there",
     "copy 2 m; read 0; read 1; read 3; events; copy 0+4 a -> already 2, 0 reads a0, 1 reads a1"},
    {SHARED, "already_of_continue_wakes_nobody",
     "foreign 2 a; read 2; events; silent 2; map 2 -> already 0; wake 2 -> mapped 1, 0 reads a2"},
    {SHARED, "already_of_zero_wakes_nobody",
     "read 2; events; foreign 2 a; silent 2; zero 2 -> already 0; wake 2 -> mapped 1, 0 reads a2"},
    {PRIVATE, "already_of_zero_wakes_nobody",
     "read 2; events; silent 2; zero 2 -> already 0; wake 2 -> mapped 1, 0 reads zeros"},
    {SHARED, "already_of_copy_wakes_nobody",
     "read 2; events; foreign 2 a; silent 2; copy 2 b -> already 0; wake 2 -> mapped 1, 0 reads a2"},
    {PRIVATE, "already_of_copy_wakes_nobody",
     "read 2; events; silent 2; copy 2 b -> already 0; wake 2 -> mapped 1, 0 reads zeros"},
    {SHARED, "already_of_poison_wakes_nobody",
     "foreign 2 a; read 2; events; silent 2; poison 2 -> already 0; wake 2 -> mapped 1, 0 reads a2"},
    {SHARED, "absent_of_continue_wakes_nobody",
     "read 2; events; map 2 -> absent 0; events -> none; wake 2; events -> missing 2"},
    {BOTH, "wake_without_a_mapping_brings_the_fault_again",
     "read 2; events -> missing 2; events -> none; wake 0+6 -> mapped 6; events -> missing 2"},
    {BOTH, "wake_takes_an_unread_fault_away_and_brings_it_back",
     "read 2; wake 2 -> mapped 1; events -> missing 2; events -> none"},
    {SHARED, "populate_wakes_nobody",
     "read 2; events; populate 2 a -> mapped 1; events -> none; wake 2; events -> minor 2"},
    {SHARED, "punch_wakes_nobody",
     "foreign 2 a; read 2; events; punch 2 -> mapped 1; events -> none; wake 2; events -> missing 2"},
    /* ------------------------------------------------------------------------------------------------- filling calls */
    {SHARED, "copy_refuses_what_is_only_cached_and_leaves_it",
     "foreign 2 a; copy 2 b -> already 0; cache 2 -> a2"},
    {SHARED | SMALL_PAGES, "zero_refuses_what_is_only_cached_and_leaves_it",
     "foreign 2 a; zero 2 -> already 0; cache 2 -> a2"},
    {SHARED, "copy_fills_the_cache_too", "copy 2 a -> mapped 1; cache 2 -> a2; alias 2 -> a2"},
    {SHARED, "zero_fills_the_cache_too", "zero 2 -> mapped 1; cache 2 -> zeros"},
    {SHARED, "continue_of_a_hole_is_absent", "foreign 0+2 a; map 0+4 -> absent 2; read 1 -> reads a1"},
    {SHARED, "continue_of_a_mapped_page_is_already",
     "foreign 0+4 a; map 2; map 0+4 -> already 2; map 3 -> mapped 1"},
    {SHARED, "a_write_to_the_cache_is_seen_by_the_guest",
     "copy 2 a; read 2 -> reads a2; populate 2 b; read 2 -> reads b2"},
    {SHARED, "populate_maps_nothing", "populate 1+3 a -> mapped 3; read 2 -> sleeps; events -> minor 2"},
    {PRIVATE | SMALL_PAGES, "private_memory_has_no_continue",
     "map 2 -> refused 0; copy 2 a; map 2 -> refused 0; read 2 -> reads a2"},
    {PRIVATE | SMALL_PAGES, "private_memory_has_no_file",
     "populate 2 a -> refused 0; punch 2 -> refused 0; read 2 -> sleeps"},
    /* ------------------------------------------------------------------------------------------------ what is dropped */
    {SHARED, "dontneed_keeps_shared_bytes",
     "copy 2 a; dontneed 2 -> done; cache 2 -> a2; read 2 -> sleeps; events -> minor 2; "
     "map 2 -> mapped 1, 0 reads a2"},
    {PRIVATE, "dontneed_drops_private_bytes",
     "copy 2 a; dontneed 2 -> done; read 2 -> sleeps; events -> missing 2; zero 2"},
    {SHARED | SMALL_PAGES, "remove_drops_shared_bytes",
     "copy 2 a; remove 2 -> done; cache 2 -> hole; read 2; events -> missing 2"},
    {SHARED | ANNOUNCED, "a_punched_hole_is_not_announced",
     "copy 2 a; discard 2 -> done; events -> none; read 2 -> sleeps; events -> missing 2"},
    {SHARED | ANNOUNCED, "our_own_punch_is_not_announced",
     "copy 2 a; punch 2 -> mapped 1; events -> none; read 2 -> sleeps; events -> missing 2"},
    {SHARED | SMALL_PAGES, "a_punch_of_nothing_is_done",
     "punch 0+6 -> mapped 6; foreign 2 a; punch 0+6 -> mapped 6; cache 2 -> hole"},
    {BOTH | ANNOUNCED, "dontneed_is_announced_before_it_happens",
     "copy 0+4 a; dontneed 1+2 -> waits; read 2 -> reads a2; events -> remove 1+2, the removal ends; "
     "read 2 -> sleeps"},
    {SHARED | ANNOUNCED | SMALL_PAGES, "remove_is_announced_before_it_happens",
     "copy 0+4 a; remove 1+2 -> waits; read 2 -> reads a2; cache 2 -> a2; "
     "events -> remove 1+2, the removal ends; cache 2 -> hole"},
    {BOTH | ANNOUNCED, "dontneed_of_nothing_is_announced_too",
     "dontneed 2 -> waits; events -> remove 2+1, the removal ends"},
    {BOTH | ANNOUNCED, "a_write_before_the_announcement_is_read_is_lost_with_the_page",
     "copy 2 a; dontneed 2 -> waits; write 2 w -> wrote; events; read 2; events"},
    /* --------------------------------------------------------------------------------------------------------- later */
    {BOTH, "unread_faults_refuse_nothing",
     "read 2; read 3; copy 0 a -> mapped 1; copy 2+2 b -> mapped 2, 0 reads b2, 1 reads b3"},
    {BOTH | ANNOUNCED, "an_unread_removal_refuses_every_page",
     "dontneed 2 -> waits; copy 0 a -> later 0; zero 4 -> later 0; copy 2 a -> later 0; read 0 -> sleeps"},
    {SHARED | ANNOUNCED, "an_unread_removal_refuses_continue",
     "foreign 0+4 a; dontneed 2 -> waits; map 0 -> later 0; map 2 -> later 0; events; map 0+4 -> mapped 4"},
    {BOTH | ANNOUNCED, "an_unread_removal_refuses_poison",
     "dontneed 2 -> waits; poison 0 -> later 0; poison 2 -> later 0; events; poison 2 -> mapped 1"},
    {SHARED | ANNOUNCED | SMALL_PAGES, "an_unread_removal_refuses_no_populate_and_no_punch",
     "foreign 0 a; dontneed 2 -> waits; populate 1 b -> mapped 1; punch 0 -> mapped 1; cache 0 -> hole; "
     "cache 1 -> b1"},
    {BOTH | ANNOUNCED, "an_unread_removal_refuses_no_wake",
     "read 3; events; dontneed 2 -> waits; wake 3 -> mapped 1; "
     "events -> missing 3, remove 2+1, the removal ends"},
    {BOTH | ANNOUNCED, "later_comes_before_already",
     "copy 3 a; dontneed 2 -> waits; copy 3 b -> later 0; zero 3 -> later 0"},
    {BOTH | ANNOUNCED, "later_comes_before_absent",
     "unmap 4; dontneed 2 -> waits; copy 4 b -> later 0; zero 6 -> later 0"},
    {BOTH | ANNOUNCED, "a_read_removal_that_has_ended_refuses_nothing",
     "dontneed 2 -> waits; copy 2 a -> later 0; events; copy 2 a -> mapped 1; read 2 -> reads a2"},
    /* -------------------------------------------------------------------------------------------------------- poison */
    {BOTH, "poison_wakes_into_sigbus",
     "read 2; read 2; events; poison 2 -> mapped 1, 0 sigbus, 1 sigbus; read 2 -> sigbus"},
    {BOTH, "poison_stops_writes_as_well", "poison 2; write 2 w -> sigbus; events -> none"},
    {BOTH, "poison_of_what_is_mapped_is_already", "copy 2 a; poison 2 -> already 0; read 2 -> reads a2"},
    {BOTH, "poison_of_poison_is_already",
     "poison 2 -> mapped 1; poison 2 -> already 0; poison 1+3 -> already 1"},
    {SHARED, "poison_leaves_the_cached_bytes",
     "foreign 2 a; poison 2 -> mapped 1; read 2 -> sigbus; cache 2 -> a2; alias 2 -> a2"},
    {SHARED, "continue_overwrites_a_marker", "foreign 2 a; poison 2; map 2 -> mapped 1; read 2 -> reads a2"},
    {SHARED, "continue_overwrites_a_marker_within_a_run",
     "foreign 0+4 a; poison 2; map 0+4 -> mapped 4; read 2 -> reads a2"},
    {SHARED, "continue_of_a_marker_over_a_hole_is_absent", "poison 2; map 2 -> absent 0; read 2 -> sigbus"},
    {BOTH, "copy_overwrites_a_marker", "poison 2; copy 2 a -> mapped 1; read 2 -> reads a2"},
    {SHARED, "copy_to_a_marker_over_bytes_is_already",
     "foreign 2 a; poison 2; copy 2 b -> already 0; read 2 -> sigbus"},
    {SHARED, "zero_overwrites_a_marker_of_shared_memory",
     "poison 2; zero 2 -> mapped 1; read 2 -> reads zeros"},
    {PRIVATE | SMALL_PAGES, "zero_keeps_a_marker_of_private_memory", "poison 2; zero 2 -> already 0; read 2 -> sigbus"},
    {SHARED | SMALL_PAGES, "a_marker_survives_a_punch",
     "foreign 2 a; poison 2; punch 2; read 2 -> sigbus; cache 2 -> hole"},
    {SHARED | SMALL_PAGES, "a_marker_survives_remove",
     "foreign 2 a; poison 2; remove 2 -> done; read 2 -> sigbus; cache 2 -> hole"},
    {BOTH, "dontneed_clears_a_marker", "poison 2; dontneed 2 -> done; read 2 -> sleeps; events -> missing 2"},
    {SHARED, "dontneed_clears_a_marker_over_bytes",
     "foreign 2 a; poison 2; dontneed 2; read 2 -> sleeps; events -> minor 2"},
    {BOTH, "a_marker_survives_unregister", "poison 2; unregister 0+6 -> done; read 2 -> sigbus"},
    {SHARED, "a_write_to_the_cache_keeps_a_marker", "poison 2; populate 2 a -> mapped 1; read 2 -> sigbus"},
    /* ----------------------------------------------------------------------------- registration, mapping, file, process */
    {BOTH, "unregister_wakes_and_nothing_faults_any_more",
     "read 2; events; unregister 0+6 -> done, 0 reads zeros; read 3 -> reads zeros; events -> none"},
    {SHARED, "unregister_shows_what_the_cache_holds",
     "foreign 0+6 a; read 2; unregister 0+6 -> done, 0 reads a2; read 3 -> reads a3"},
    {BOTH, "a_call_on_an_unregistered_page_is_absent",
     "unregister 2; copy 2 a -> absent 0; zero 2 -> absent 0; poison 2 -> absent 0"},
    {SHARED, "continue_of_an_unregistered_page_is_absent",
     "foreign 2 a; unregister 2; map 2 -> absent 0; read 2 -> reads a2"},
    {BOTH, "an_unmap_wakes_nobody_and_the_next_call_does",
     "read 2; events; unmap 2 -> done; copy 2 a -> absent 0, 0 sigsegv; events -> none"},
    {BOTH, "a_call_that_meets_the_end_of_a_mapping_goes_up_to_it",
     "read 2; read 4; events; unmap 3; copy 2+3 a -> absent 1, 0 reads a2; "
     "copy 4 a -> mapped 1, 1 reads a4"},
    {SHARED, "unmapped_bytes_stay_in_the_file",
     "copy 2 a; unmap 2; cache 2 -> a2; map 2 -> absent 0; read 2 -> sigsegv"},
    {BOTH, "a_call_outside_of_everything_is_absent",
     "copy 6 a -> absent 0; zero 6+2 -> absent 0; poison 7 -> absent 0"},
    {BOTH, "a_call_that_leaves_the_memory_goes_up_to_its_end", "copy 4+4 a -> absent 2; read 5 -> reads a5"},
    {SHARED, "continue_outside_of_everything_is_absent",
     "foreign 4+2 a; map 6 -> absent 0; map 4+4 -> absent 2"},
    {BOTH, "wake_outside_of_everything_is_done",
     "wake 6+2 -> mapped 2; read 2; events; wake 0+8 -> mapped 8; events -> missing 2"},
    {SHARED, "a_page_behind_the_end_of_the_file_is_absent",
     "read 4; events; cut 4 -> done; copy 4 a -> absent 0, 0 sigbus; zero 5 -> absent 0; map 5 -> absent 0"},
    {SHARED | SMALL_PAGES, "a_call_that_meets_the_end_of_the_file_goes_up_to_it",
     "foreign 0+6 a; cut 4; map 2+4 -> absent 2; poison 2 -> already 0; poison 4 -> absent 0; "
     "read 4 -> sigbus"},
    {SHARED | SMALL_PAGES, "a_cut_file_drops_bytes_and_mappings",
     "copy 4 a; read 4 -> reads a4; cut 4; read 4 -> sigbus; cache 4 -> hole"},
    {BOTH, "a_vmm_that_is_gone_takes_no_call",
     "read 2; events; exit; copy 2 a -> gone 0; zero 2 -> gone 0; poison 2 -> gone 0; copy 9 a -> gone 0"},
    {SHARED, "continue_for_a_vmm_that_is_gone", "foreign 2 a; exit; map 2 -> gone 0; cache 2 -> a2"},
    {BOTH, "wake_for_a_vmm_that_is_gone_is_done", "read 2; exit; wake 2 -> mapped 1; events -> none"},
    {SHARED | SMALL_PAGES, "the_file_of_a_vmm_that_is_gone_takes_writes_and_punches",
     "foreign 2 a; exit; populate 3 b -> mapped 1; punch 2 -> mapped 1; cache 2 -> hole; cache 3 -> b3"},
    {SMALL | SMALL_PAGES, "what_takes_memory_is_full",
     "full; populate 2 a -> full 0; copy 2 a -> full 0; zero 2 -> full 0; cache 2 -> hole; room; "
     "copy 2 a -> mapped 1"},
    {SMALL | SMALL_PAGES, "what_takes_no_memory_goes_on",
     "foreign 0+4 a; full; map 0+2 -> mapped 2; poison 3 -> mapped 1; punch 2 -> mapped 1; cache 2 -> hole"},
    {SMALL, "a_cached_page_can_be_written_where_no_room_is",
     "foreign 2 a; full; populate 2 b -> mapped 1; cache 2 -> b2"},
    {SMALL | SMALL_PAGES, "full_comes_before_already",
     "foreign 2 a; full; copy 2 b -> full 0; zero 2 -> full 0; room; copy 2 b -> already 0"},
    {SMALL | SMALL_PAGES, "full_wakes_nobody",
     "full; read 2; events; copy 2 a -> full 0; events -> none; room; copy 2 a -> mapped 1, 0 reads a2"},
    /* --------------------------------------------------------------------------------- huge pages of a pool, 2 MiB */
    {BOTH | HUGE, "a_fault_anywhere_in_a_huge_page_is_one_at_its_start", "readlast 2 -> sleeps; events -> missing 2"},
    {BOTH | HUGE, "nothing_of_a_huge_page_that_is_half_here_is_seen",
     "readlast 2 -> sleeps; events; populatehalf 2 a -> mapped 1; read 2 -> sleeps; readlast 2 -> sleeps; wake 2"},
    {SHARED | HUGE, "half_of_a_huge_page_makes_it_minor",
     "populatehalf 2 a; readlast 2; events -> minor 2; map 2 -> mapped 1, 0 reads zeros; read 2 -> reads a2"},
    {PRIVATE | HUGE, "half_of_a_private_huge_page_is_staged",
     "populatehalf 2 a; readlast 2; events -> missing 2; map 2 -> mapped 1, 0 reads zeros; read 2 -> reads a2"},
    {PRIVATE | HUGE, "what_was_staged_is_gone_with_its_map",
     "populate 2 a; map 2 -> mapped 1; read 2 -> reads a2; dontneed 2; map 2 -> mapped 1; read 2 -> reads zeros"},
    {PRIVATE | HUGE, "map_of_what_is_mapped_is_already_and_leaves_it",
     "populate 2 a; map 2; write 2 w; populate 2 b; map 2 -> already 0; read 2 -> reads w2"},
    {BOTH | HUGE, "a_huge_page_is_mapped_whole_and_wakes_all_who_sleep_there",
     "read 2; readlast 2; events; populate 2 a; map 2 -> mapped 1, 0 reads a2, 1 reads a2"},
    {SHARED | HUGE, "zero_maps_what_is_there", "populatehalf 2 a; zero 2 -> mapped 1; read 2 -> reads a2; readlast 2 -> reads zeros"},
    {BOTH | HUGE, "zero_of_what_is_mapped_is_already", "populate 2 a; map 2; zero 2 -> already 0; read 2 -> reads a2"},
    {BOTH | HUGE, "a_hole_of_half_a_huge_page_is_zeros",
     "populate 2 a; punchhalf 2 -> mapped 1; map 2 -> mapped 1; read 2 -> reads zeros; readlast 2 -> reads a2"},
    {SHARED | HUGE, "a_hole_of_a_whole_one_is_a_hole_in_every_mapping",
     "populate 2 a; map 2; read 2 -> reads a2; punch 2 -> mapped 1; read 2 -> sleeps; events -> missing 2"},
    {SHARED | HUGE, "remove_drops_shared_bytes", "copy 2 a; remove 2 -> done; read 2; events -> missing 2"},
    {SHARED | HUGE, "dontneed_keeps_shared_bytes_of_a_huge_page",
     "copy 2 a; dontneed 2 -> done; readlast 2; events -> minor 2; map 2 -> mapped 1, 0 reads a2"},
    {SHARED | HUGE, "a_punch_takes_a_marker_along", "foreign 2 a; poison 2; punch 2; read 2 -> sleeps; events -> missing 2"},
    {SHARED | HUGE, "remove_takes_a_marker_along", "foreign 2 a; poison 2; remove 2; read 2 -> sleeps; events -> missing 2"},
    {BOTH | HUGE, "zero_takes_the_place_of_a_marker", "poison 2 -> mapped 1; readlast 2 -> sigbus; zero 2 -> mapped 1; read 2 -> reads zeros"},
    {BOTH | HUGE, "a_marker_is_of_the_whole_huge_page", "poison 2; read 2 -> sigbus; readlast 2 -> sigbus; read 3 -> sleeps"},
    {SMALL | HUGE, "what_takes_room_is_full_and_wakes_nobody",
     "full; readlast 2; events; populate 2 a -> full 0; populatehalf 2 a -> full 0; zero 2 -> full 0; events -> none; room; "
     "populate 2 a -> mapped 1; map 2 -> mapped 1, 0 reads a2"},
    {SMALL | HUGE, "what_takes_no_room_goes_on",
     "foreign 0+4 a; full; populatehalf 1 b -> mapped 1; map 0+2 -> mapped 2; poison 3 -> mapped 1; punchhalf 2 -> mapped 1; punch 2 -> mapped 1"},
};

/* ----------------------------------------------------------------------------------- every call on every state of a page */

/* How page 2 comes to be in it. */
static const struct fact states[] = {
    {BOTH, "a_hole", ""},
    {SHARED, "cached_bytes", "foreign 2 c"},
    {SHARED, "zeros_by_another_mapping", "alias 2"},
    {BOTH, "a_mapped_page", "copy 2 m"},
    {BOTH, "a_mapped_zero_page", "zero 2"},
    {BOTH, "a_written_page", "copy 2 m; write 2 w"},
    {BOTH, "a_written_zero_page", "zero 2; write 2 w"},
    {BOTH, "a_zapped_page", "copy 2 m; dontneed 2"},
    {SHARED, "a_reclaimed_page", "copy 2 m; reclaim 2"},
    {SHARED, "a_discarded_page", "copy 2 m; discard 2"},
    {SHARED, "a_removed_page", "copy 2 m; remove 2"},
    {BOTH | ANNOUNCED, "a_page_whose_zap_was_announced", "copy 2 m; dontneed 2; events"},
    {SHARED | ANNOUNCED, "a_page_whose_removal_was_announced", "copy 2 m; remove 2; events"},
    {SHARED, "a_silently_mapped_page", "foreign 2 c; read 2; silent 2"},
    {PRIVATE, "a_silently_mapped_page", "read 2; silent 2"},
    {BOTH, "a_marker", "poison 2"},
    {SHARED, "a_marker_over_bytes", "foreign 2 c; poison 2"},
    {SHARED, "a_punched_marker", "foreign 2 c; poison 2; punch 2"},
    {BOTH, "a_zapped_marker", "poison 2; dontneed 2"},
    {BOTH, "an_unregistered_page", "unregister 2"},
    {BOTH, "an_unregistered_mapped_page", "copy 2 m; unregister 2"},
    {BOTH, "an_unmapped_page", "unmap 2"},
    {SHARED, "an_unmapped_cached_page", "foreign 2 c; unmap 2"},
};

/* What makes pages that the call can do. */
static const struct fact calls[] = {
    {SHARED, "map", "foreign 0+2 g; foreign 3 g"},
    {BOTH, "copy", ""},
    {BOTH, "zero", ""},
    {BOTH, "poison", ""},
    {SHARED, "populate", ""},
    {SHARED, "punch", "foreign 0+2 g; copy 3 g"},
    {BOTH, "wake", ""},
};

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static struct kernel_case *add(struct kernel_case *cases, uint32_t *count, unsigned memory, bool huge, unsigned where)
{
    static const enum real_memory kinds[][2] = {[SHARED] = {REAL_MEMFD, REAL_HUGE},
                                                [PRIVATE] = {REAL_PRIVATE, REAL_HUGE_PRIVATE},
                                                [SMALL] = {REAL_TMPFS, REAL_HUGE}};
    struct kernel_case *one = &cases[*count];

    if (*count == CASES_MAX)
        abort();
    *count += 1;
    *one = (struct kernel_case){
        .memory = kinds[memory][huge], .announced = (where & ANNOUNCED) != 0, .small = memory == SMALL};
    return one;
}

static void fits(int length, size_t size)
{
    if (length < 0 || (size_t)length >= size)
        abort();
}

static bool of_pages(unsigned where, bool huge)
{
    return (where & (huge ? SMALL_PAGES : HUGE)) == 0;
}

/* Threads sleep in front of the page, on it and behind it; then the call, and again from where it stopped. */
static void add_state(struct kernel_case *cases, uint32_t *count, const struct fact *call, const struct fact *state)
{
    for (unsigned kind = 0; kind < 4; kind++) {
        unsigned memory = kind % 2 == 0 ? SHARED : PRIVATE;
        struct kernel_case *one;
        if ((call->where & state->where & memory) == 0 || !of_pages(call->where | state->where, kind / 2 == 1))
            continue;
        one = add(cases, count, memory, kind / 2 == 1, state->where);
        fits(snprintf(one->name, sizeof(one->name), "%s_of_%s", call->name, state->name), sizeof(one->name));
        fits(snprintf(one->steps, sizeof(one->steps),
                      "%s; %s; read 0; read 2; write 3 v; events; %s 0+4 x; %s 2+2 y; unread; wake 2",
                      call->steps, state->steps, call->name, call->name),
             sizeof(one->steps));
    }
}

uint32_t kernel_cases(struct kernel_case cases[CASES_MAX])
{
    uint32_t count = 0;

    for (size_t i = 0; i < COUNT(facts); i++)
        for (unsigned kind = 0; kind < 6; kind++) {
            unsigned memory = SHARED << kind % 3;
            struct kernel_case *one;
            if ((facts[i].where & memory) == 0 || !of_pages(facts[i].where, kind / 3 == 1))
                continue;
            one = add(cases, &count, memory, kind / 3 == 1, facts[i].where);
            fits(snprintf(one->name, sizeof(one->name), "fact_%s", facts[i].name), sizeof(one->name));
            fits(snprintf(one->steps, sizeof(one->steps), "%s", facts[i].steps), sizeof(one->steps));
        }
    for (size_t i = 0; i < COUNT(calls); i++)
        for (size_t j = 0; j < COUNT(states); j++)
            add_state(cases, &count, &calls[i], &states[j]);
    return count;
}
