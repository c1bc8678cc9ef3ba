/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The services that every gRPC program expects: grpc.health.v1, and server reflection (v1 and v1alpha, which
 * differ in name only) from the descriptors in gen/. They work while the interpreter is stopped, and are open
 * to whoever reaches the port: they say nothing that is not in proto/.
 */
#include <stdlib.h>
#include <string.h>

#include "../gen/descriptors.h"
#include "../rpc/pb.h"
#include "calls.h"

#define QUESTION_BYTES_MAX 1024  /* of reflection: a name, of a file or a symbol */
#define QUESTIONS_BYTES_MAX 8192 /* of a call, not answered yet */
#define NAMES_BYTES_MAX 1024     /* of all services, as a message */
#define SERVICE "pageferry.v1.PageService"

static struct grpc_bytes text_bytes(const char *text)
{
    return (struct grpc_bytes){.data = (const uint8_t *)text, .length = strlen(text)};
}

/* ------------------------------------------------------------------------------------------------- health */

static int health_message(struct call *call, struct grpc_bytes message)
{
    struct pb_reader reader = pb_reader_of(message);
    struct grpc_bytes service = {NULL, 0};
    struct pb_field field = {0};
    int more;

    while ((more = pb_read_field(&reader, &field)) > 0) {
        if (field.number == PF_FIELD_HEALTH_CHECK_REQUEST_SERVICE && field.type == PB_BYTES)
            service = field.bytes;
    }
    if (more < 0)
        return call_refuse(call, PF_REASON_BAD_REQUEST, "the request is malformed");
    call->known = service.length == 0 || grpc_is_text(service, SERVICE);
    return 0;
}

static uint32_t health_status(struct call *call)
{
    struct service *service = call->connection->worker->service;
    bool serving = atomic_load(&service->serving) != 0 && atomic_load(&service->draining) == 0;

    if (!call->known)
        return PF_SERVING_STATUS_SERVICE_UNKNOWN;
    return serving ? PF_SERVING_STATUS_SERVING : PF_SERVING_STATUS_NOT_SERVING;
}

static enum grpc_pulled say_health(struct call *call, struct grpc_bytes *message)
{
    struct pb_writer writer = {.at = call->own, .end = call->own + sizeof(call->own)};

    call->status_sent = health_status(call);
    pb_write_number(&writer, PF_FIELD_HEALTH_CHECK_RESPONSE_STATUS, call->status_sent);
    call->begun = true;
    message->data = call->own;
    message->length = (size_t)(writer.at - call->own);
    return GRPC_PULLED_MESSAGE;
}

static enum grpc_pulled check_pull(struct call *call, struct grpc_bytes *message)
{
    if (call->begun)
        return call_done(call);
    if (!call->known) {
        call_refuse(call, PF_REASON_NO_SUCH_IMAGE, "this port has no service of this name");
        return GRPC_PULLED_LAST;
    }
    return say_health(call, message);
}

/* The first status at once, then each change but such as came and went before the peer has read. */
static enum grpc_pulled watch_pull(struct call *call, struct grpc_bytes *message)
{
    if (call->begun && call->status_sent == health_status(call))
        return GRPC_PULLED_NOTHING;
    return say_health(call, message);
}

/* --------------------------------------------------------------------------------------------- reflection */

/* Each with its length in front, two bytes, the oldest first. */
struct questions {
    size_t bytes;
    uint8_t data[QUESTIONS_BYTES_MAX];
};

static int reflect_message(struct call *call, struct grpc_bytes message)
{
    struct questions *questions = call->questions;

    if (message.length > QUESTION_BYTES_MAX)
        return call_refuse(call, PF_REASON_BAD_REQUEST, "nothing here has so long a name");
    if (questions == NULL)
        questions = call->questions = calloc(1, sizeof(*questions));
    if (questions == NULL)
        return call_refuse(call, PF_REASON_NO_MEMORY, "the server has no memory for this request");
    if (questions->bytes + 2 + message.length > sizeof(questions->data))
        return call_refuse(call, PF_REASON_BUSY, "too many questions, and the answers are not read");
    questions->data[questions->bytes++] = (uint8_t)(message.length >> 8);
    questions->data[questions->bytes++] = (uint8_t)message.length;
    if (message.length > 0)
        memcpy(questions->data + questions->bytes, message.data, message.length);
    questions->bytes += message.length;
    grpc_resume(call->grpc);
    return 0;
}

static const struct pf_descriptor *find_file(struct grpc_bytes name)
{
    const struct pf_descriptor *found = NULL;

    for (size_t i = 0; i < PF_DESCRIPTOR_COUNT && found == NULL; i++) {
        if (grpc_is_text(name, pf_descriptors[i].file))
            found = &pf_descriptors[i];
    }
    return found;
}

static const struct pf_descriptor *find_symbol(struct grpc_bytes name)
{
    for (size_t i = 0; i < PF_DESCRIPTOR_COUNT; i++) {
        for (const char *const *symbol = pf_descriptors[i].symbols; *symbol != NULL; symbol++) {
            if (grpc_is_text(name, *symbol))
                return &pf_descriptors[i];
        }
    }
    return NULL;
}

static void write_error(struct pb_writer *writer, uint32_t code, const char *why)
{
    uint8_t bytes[128];
    struct pb_writer inner = {.at = bytes, .end = bytes + sizeof(bytes)};

    pb_write_number(&inner, PF_FIELD_ERROR_RESPONSE_ERROR_CODE, code);
    pb_write_bytes(&inner, PF_FIELD_ERROR_RESPONSE_ERROR_MESSAGE, text_bytes(why));
    pb_write_bytes(writer, PF_FIELD_SERVER_REFLECTION_RESPONSE_ERROR_RESPONSE,
                   (struct grpc_bytes){bytes, (size_t)(inner.at - bytes)});
}

static void write_file(struct pb_writer *writer, const struct pf_descriptor *file)
{
    struct grpc_bytes bytes = {0};

    if (file == NULL) {
        write_error(writer, GRPC_NOT_FOUND, "there is no such file or symbol here");
        return;
    }
    bytes = (struct grpc_bytes){file->bytes, file->length_bytes};
    pb_write_tag(writer, PF_FIELD_SERVER_REFLECTION_RESPONSE_FILE_DESCRIPTOR_RESPONSE, PB_BYTES);
    /* its one field: tag, length, bytes */
    pb_write_varint(writer, 1 + pb_varint_bytes(bytes.length) + bytes.length);
    pb_write_bytes(writer, PF_FIELD_FILE_DESCRIPTOR_RESPONSE_FILE_DESCRIPTOR_PROTO, bytes);
}

static void write_services(struct pb_writer *writer)
{
    uint8_t list[NAMES_BYTES_MAX], one[NAMES_BYTES_MAX / PF_SERVICE_COUNT];
    struct pb_writer names = {.at = list, .end = list + sizeof(list)};

    for (size_t i = 0; i < PF_SERVICE_COUNT; i++) {
        struct pb_writer name = {.at = one, .end = one + sizeof(one)};
        pb_write_bytes(&name, PF_FIELD_SERVICE_RESPONSE_NAME, text_bytes(pf_services[i]));
        pb_write_bytes(&names, PF_FIELD_LIST_SERVICE_RESPONSE_SERVICE,
                       (struct grpc_bytes){one, (size_t)(name.at - one)});
    }
    pb_write_bytes(writer, PF_FIELD_SERVER_REFLECTION_RESPONSE_LIST_SERVICES_RESPONSE,
                   (struct grpc_bytes){list, (size_t)(names.at - list)});
}

/* Of a type that is ours: it has no extensions, proto3 has none. */
static void write_extensions(struct pb_writer *writer, struct grpc_bytes type)
{
    uint8_t bytes[QUESTION_BYTES_MAX];
    struct pb_writer inner = {.at = bytes, .end = bytes + sizeof(bytes)};

    if (find_symbol(type) == NULL) {
        write_error(writer, GRPC_NOT_FOUND, "there is no such type here");
        return;
    }
    pb_write_bytes(&inner, PF_FIELD_EXTENSION_NUMBER_RESPONSE_BASE_TYPE_NAME, type);
    pb_write_bytes(writer, PF_FIELD_SERVER_REFLECTION_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE,
                   (struct grpc_bytes){bytes, (size_t)(inner.at - bytes)});
}

struct question {
    uint32_t field; /* which of them; 0: none */
    struct grpc_bytes name;
    struct grpc_bytes host;
};

static bool read_question(struct grpc_bytes asked, struct question *question)
{
    struct pb_reader reader = pb_reader_of(asked);
    struct pb_field field;
    int more;

    memset(question, 0, sizeof(*question));
    while ((more = pb_read_field(&reader, &field)) > 0) {
        if (field.type == PB_BYTES && field.number == PF_FIELD_SERVER_REFLECTION_REQUEST_HOST) {
            question->host = field.bytes;
        } else if (field.type == PB_BYTES) {
            question->field = field.number;
            question->name = field.bytes;
        }
    }
    return more == 0;
}

static void write_answer(struct pb_writer *writer, const struct question *question)
{
    switch (question->field) {
    case PF_FIELD_SERVER_REFLECTION_REQUEST_FILE_BY_FILENAME:
        write_file(writer, find_file(question->name));
        break;
    case PF_FIELD_SERVER_REFLECTION_REQUEST_FILE_CONTAINING_SYMBOL:
        write_file(writer, find_symbol(question->name));
        break;
    case PF_FIELD_SERVER_REFLECTION_REQUEST_FILE_CONTAINING_EXTENSION:
        write_error(writer, GRPC_NOT_FOUND, "there are no extensions here");
        break;
    case PF_FIELD_SERVER_REFLECTION_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        write_extensions(writer, question->name);
        break;
    case PF_FIELD_SERVER_REFLECTION_REQUEST_LIST_SERVICES:
        write_services(writer);
        break;
    default:
        write_error(writer, GRPC_INVALID_ARGUMENT, "the request asks nothing that is known here");
    }
}

/* One question -> its answer, in the call's own memory. False: it is no message. */
static bool reflect(struct call *call, struct grpc_bytes asked, struct grpc_bytes *answer)
{
    struct pb_writer writer = {.at = call->own, .end = call->own + sizeof(call->own)};
    struct question question;
    bool good = read_question(asked, &question);

    pb_write_bytes(&writer, PF_FIELD_SERVER_REFLECTION_RESPONSE_VALID_HOST, question.host);
    pb_write_bytes(&writer, PF_FIELD_SERVER_REFLECTION_RESPONSE_ORIGINAL_REQUEST, asked);
    write_answer(&writer, &question);
    *answer = (struct grpc_bytes){call->own, (size_t)(writer.at - call->own)};
    return good && !writer.full;
}

static enum grpc_pulled reflect_pull(struct call *call, struct grpc_bytes *message)
{
    struct questions *questions = call->questions;
    struct grpc_bytes oldest;
    bool good;

    if (questions == NULL || questions->bytes == 0)
        return call->half_closed ? call_done(call) : GRPC_PULLED_NOTHING;
    oldest.length = (size_t)questions->data[0] << 8 | questions->data[1];
    oldest.data = questions->data + 2;
    good = reflect(call, oldest, message);
    questions->bytes -= 2 + oldest.length;
    memmove(questions->data, oldest.data + oldest.length, questions->bytes);
    if (!good) {
        call_refuse(call, PF_REASON_BAD_REQUEST, "the request is malformed");
        return GRPC_PULLED_LAST;
    }
    return GRPC_PULLED_MESSAGE;
}

/* ---------------------------------------------------------------------------------------------- the table */

static const struct method methods[] = {
    {PF_PATH_HEALTH_CHECK, GATE_NOTHING, false, health_message, check_pull},
    {PF_PATH_HEALTH_WATCH, GATE_NOTHING, false, health_message, watch_pull},
    {PF_PATH_SERVER_REFLECTION_INFO, GATE_NOTHING, true, reflect_message, reflect_pull},
    {PF_PATH_SERVER_REFLECTION_INFO_V1ALPHA, GATE_NOTHING, true, reflect_message, reflect_pull},
};

const struct method *standard_find(struct grpc_bytes path)
{
    return method_of(methods, sizeof(methods) / sizeof(methods[0]), path);
}

void standard_health_changed(struct call *call)
{
    if (call->method->pull == watch_pull)
        grpc_resume(call->grpc);
}

void standard_ended(struct call *call)
{
    free(call->questions);
    call->questions = NULL;
}
