/* SPDX-License-Identifier: Apache-2.0 */
/* The header fields of gRPC over HTTP/2: see fields.h. Unknown fields are passed over, the last of several counts. */
#include "fields.h"

#include <stdio.h>
#include <string.h>

#include "../gen/contract.h"

#define FIELD_OVERHEAD_BYTES 32
#define FLOOD_FACTOR 4 /* a block this many times too long is no mistake */
#define TIMEOUT_DIGITS_MAX 8

static bool is_name(const char *name, size_t length, const char *wanted)
{
    return length == strlen(wanted) && memcmp(name, wanted, length) == 0;
}

void field_block_begin(struct field_block *block)
{
    size_t bytes_max = block->bytes_max;
    char *memory = block->memory;

    memset(block, 0, sizeof(*block));
    block->bytes_max = bytes_max;
    block->memory = memory;
}

/* There is room: what is kept is part of what was counted. */
static struct grpc_bytes keep(struct field_block *block, const char *value, size_t length)
{
    char *to = block->memory + block->kept;

    memcpy(to, value, length);
    block->kept += length;
    return (struct grpc_bytes){(const uint8_t *)to, length};
}

/* Digits only, at most `digits_max` of them. */
static bool read_number(const char *value, size_t length, size_t digits_max, uint64_t *number)
{
    *number = 0;
    if (length == 0 || length > digits_max)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (value[i] < '0' || value[i] > '9')
            return false;
        *number = *number * 10 + (uint64_t)(value[i] - '0');
    }
    return true;
}

/* "8 digits, unit"; what is malformed counts as none, as the specification leaves it open. */
static uint64_t read_timeout(const char *value, size_t length)
{
    static const struct {
        char unit;
        uint64_t ns;
    } units[] = {{'H', UINT64_C(3600000000000)}, {'M', UINT64_C(60000000000)}, {'S', UINT64_C(1000000000)},
                 {'m', UINT64_C(1000000)},       {'u', UINT64_C(1000)},        {'n', 1}};
    uint64_t number = 0, unit_ns = 0;

    if (length < 2 || !read_number(value, length - 1, TIMEOUT_DIGITS_MAX, &number))
        return 0;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (value[length - 1] == units[i].unit)
            unit_ns = units[i].ns;
    if (number == 0 && unit_ns != 0)
        return 1; /* none at all is another thing */
    return unit_ns != 0 && number > UINT64_MAX / unit_ns ? UINT64_MAX : number * unit_ns;
}

static int hex_digit(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* Percent-decoded, cut to what there is room for; what is no escape stays as it is. */
static void read_message(const char *value, size_t length, char *message)
{
    size_t used = 0;

    for (size_t i = 0; i < length && used < GRPC_TEXT_BYTES - 1; i++) {
        char one = value[i];
        if (one == '%' && length - i > 2 && hex_digit(value[i + 1]) >= 0 && hex_digit(value[i + 2]) >= 0) {
            one = (char)(hex_digit(value[i + 1]) << 4 | hex_digit(value[i + 2]));
            i += 2;
        }
        message[used++] = one == 0 ? ' ' : one;
    }
    message[used] = 0;
}

struct reason_words {
    uint32_t number;
    uint32_t code;
    const char *name;
    const char *text;
};

#define REASON_WORDS(number, name, code, text) {number, code, #name, text},
static const struct reason_words reasons[] = {PF_REASONS(REASON_WORDS)};
#undef REASON_WORDS
#define REASON_COUNT (sizeof(reasons) / sizeof(reasons[0]))

/* NULL: none, or one that this version does not know. */
static const struct reason_words *words_of(uint32_t reason)
{
    const struct reason_words *found = NULL;

    for (size_t i = 0; i < REASON_COUNT && found == NULL; i++)
        if (reasons[i].number == reason)
            found = &reasons[i];
    return found;
}

static uint32_t read_reason(const char *value, size_t length)
{
    uint32_t reason = 0;

    for (size_t i = 0; i < REASON_COUNT && reason == 0; i++)
        if (is_name(value, length, reasons[i].name))
            reason = reasons[i].number;
    return reason;
}

static void add_request_field(struct field_block *block, const char *name, size_t name_length, const char *value,
                              size_t value_length)
{
    if (is_name(name, name_length, ":method"))
        block->is_post = is_name(value, value_length, "POST");
    else if (is_name(name, name_length, ":path"))
        block->request.path = keep(block, value, value_length);
    else if (is_name(name, name_length, "authorization"))
        block->request.authorization = keep(block, value, value_length);
    else if (is_name(name, name_length, "pageferry-session"))
        block->request.session = keep(block, value, value_length);
    else if (is_name(name, name_length, "pageferry-target"))
        block->request.target = keep(block, value, value_length);
    else if (is_name(name, name_length, "pageferry-epoch"))
        block->request.epoch = keep(block, value, value_length);
    else if (is_name(name, name_length, "grpc-timeout"))
        block->request.timeout_ns = read_timeout(value, value_length);
}

static void add_answer_field(struct field_block *block, const char *name, size_t name_length, const char *value,
                             size_t value_length)
{
    uint64_t number;

    if (is_name(name, name_length, ":status")) {
        block->http_status = read_number(value, value_length, 3, &number) ? (uint32_t)number : 0;
    } else if (is_name(name, name_length, "grpc-status")) {
        block->has_status = true;
        block->status.code = read_number(value, value_length, 9, &number) ? (uint32_t)number : GRPC_UNKNOWN;
    } else if (is_name(name, name_length, "grpc-message")) {
        read_message(value, value_length, block->status.message);
    } else if (is_name(name, name_length, "pageferry-reason")) {
        block->status.reason = read_reason(value, value_length);
    } else if (is_name(name, name_length, "pageferry-retry-after-ms")) {
        block->status.retry_after_ms = read_number(value, value_length, 9, &number) ? (uint32_t)number : 0;
    }
}

int field_block_add(struct field_block *block, const char *name, size_t name_length, const char *value,
                    size_t value_length)
{
    static const char grpc_type[] = "application/grpc";

    block->bytes += name_length + value_length + FIELD_OVERHEAD_BYTES;
    if (block->bytes > block->bytes_max) {
        block->too_long = true;
        return block->bytes / FLOOD_FACTOR > block->bytes_max ? -1 : 0;
    }
    if (is_name(name, name_length, "content-type")) {
        block->is_grpc = value_length >= sizeof(grpc_type) - 1 && memcmp(value, grpc_type, sizeof(grpc_type) - 1) == 0;
        return 0;
    }
    add_request_field(block, name, name_length, value, value_length);
    add_answer_field(block, name, name_length, value, value_length);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------- status */

void fields_complete_status(struct grpc_status *status)
{
    const struct reason_words *words = words_of(status->reason);

    if (status->code == GRPC_OK && status->reason != 0)
        status->code = words != NULL ? words->code : GRPC_UNKNOWN;
    if (status->message[0] == 0 && words != NULL)
        snprintf(status->message, sizeof(status->message), "%s", words->text);
}

/* Percent-encoded: what is not printable ASCII, and the percent sign. */
static size_t write_message(const char *message, char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    size_t used = 0;

    for (size_t i = 0; i < GRPC_TEXT_BYTES - 1 && message[i] != 0; i++) {
        uint8_t one = (uint8_t)message[i];
        if (one >= 0x20 && one <= 0x7e && one != '%') {
            text[used++] = (char)one;
        } else {
            text[used++] = '%';
            text[used++] = digits[one >> 4];
            text[used++] = digits[one & 15];
        }
    }
    return used;
}

size_t fields_of_status(const struct grpc_status *status, struct field_text *text, struct h2_field *fields)
{
    const struct reason_words *words = words_of(status->reason);
    size_t count = 0, length = (size_t)snprintf(text->code, sizeof(text->code), "%u", status->code);

    fields[count++] = (struct h2_field){"grpc-status", text->code, length, false, false};
    if (status->message[0] != 0) {
        length = write_message(status->message, text->message);
        fields[count++] = (struct h2_field){"grpc-message", text->message, length, false, false};
    }
    if (words != NULL)
        fields[count++] = (struct h2_field){"pageferry-reason", words->name, strlen(words->name), true, false};
    if (status->retry_after_ms != 0) {
        length = (size_t)snprintf(text->retry_after, sizeof(text->retry_after), "%u", status->retry_after_ms);
        fields[count++] = (struct h2_field){"pageferry-retry-after-ms", text->retry_after, length, false, false};
    }
    return count;
}

uint32_t fields_code_of_http(uint32_t http_status)
{
    switch (http_status) {
    case 400:
        return GRPC_INTERNAL;
    case 401:
        return GRPC_UNAUTHENTICATED;
    case 403:
        return GRPC_PERMISSION_DENIED;
    case 404:
        return GRPC_UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return GRPC_UNAVAILABLE;
    default:
        return GRPC_UNKNOWN;
    }
}

uint32_t fields_code_of_reset(uint32_t error)
{
    switch (error) {
    case H2_REFUSED_STREAM:
        return GRPC_UNAVAILABLE;
    case H2_CANCEL:
        return GRPC_CANCELLED;
    case H2_ENHANCE_YOUR_CALM:
        return GRPC_RESOURCE_EXHAUSTED;
    case H2_INADEQUATE_SECURITY:
        return GRPC_PERMISSION_DENIED;
    default:
        return GRPC_INTERNAL;
    }
}
