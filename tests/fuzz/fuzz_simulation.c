/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engine orders and events, in a world that knows every byte: the simulation of tests/native, whose dice the fuzzer
 * throws. What guest, VMM, server, link and kernel do next is the next bytes of the input, so coverage of the engine
 * leads to rare interleavings; every check of the simulation is a finding. When the input ends, all troubles end, and
 * everything must settle.
 *
 * Input: a byte (bit 0: workers are killed), then the dice. A die is one byte when that suffices, else eight.
 */
#include <stdbool.h>

#include "fuzz.h"
#include "sim_world.h"

#define STEPS_MAX 600

static struct world world;
static struct fuzz_tape tape;

uint64_t __real_sim_random(uint64_t *state);
uint64_t __wrap_sim_random(uint64_t *state);

/* All but sim_kernel.c itself come here. What is not the world's own state is a hash, and stays one. */
uint64_t __wrap_sim_random(uint64_t *state)
{
    uint64_t number = 0;

    if (state != &world.random || world.healing || tape.at == tape.end)
        return __real_sim_random(state);
    number = fuzz_byte(&tape);
    if (number < 250)
        return number;
    for (int i = 0; i < 3; i++)
        number = number << 8 | fuzz_byte(&tape);
    return number;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || (world.table.header == NULL && table_create(WORLD_PAGES, &world.table) < 0))
        return 0;
    world.seed = world.random = 1;
    world.steps = 0;
    world.crashes = (data[0] & 1) != 0;
    world.healing = false;
    tape = fuzz_tape_of(data + 1, size - 1);
    world_begin(&world);
    while (tape.at < tape.end && world.steps < STEPS_MAX && !world.dead)
        world_step(&world);
    if (!world.sim.gone)
        world_heal(&world);
    world_end(&world);
    return 0;
}
