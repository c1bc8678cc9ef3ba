/* SPDX-License-Identifier: Apache-2.0 */
/* Who calls: see caller.h. */
#include "caller.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char session_letters[] = "abcdefghijklmnopqrstuvwxyz0123456789-";
static const char token_letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

static int refuse(struct pageferry_vm_options *options, const char *sentence)
{
    snprintf(options->error, sizeof(options->error), "%s", sentence);
    return -PF_REASON_BAD_REQUEST;
}

static bool consists_of(const char *text, size_t length, const char *letters)
{
    return strspn(text, letters) == length && text[length] == 0;
}

static struct grpc_bytes text_of(const char *text)
{
    return (struct grpc_bytes){(const uint8_t *)text, strlen(text)};
}

int caller_set(struct caller *caller, struct pageferry_vm_options *options)
{
    size_t length = options->session == NULL ? 0 : strnlen(options->session, sizeof(caller->session));

    if (options->session == NULL)
        return 0;
    if (length == 0 || length == sizeof(caller->session) || !consists_of(options->session, length, session_letters))
        return refuse(options, "a session's name is of 1 to 63 small letters, digits and hyphens");
    if (options->token == NULL || !consists_of(options->token, CALLER_TOKEN_CHARS, token_letters))
        return refuse(options, "a session's token is 32 bytes as base64url, without padding");
    if (options->target == 0 || options->epoch == 0)
        return refuse(options, "target and epoch of a session's caller are not 0");
    snprintf(caller->authorization, sizeof(caller->authorization), "Bearer %s", options->token);
    snprintf(caller->session, sizeof(caller->session), "%s", options->session);
    snprintf(caller->target, sizeof(caller->target), "%016" PRIx64, options->target);
    snprintf(caller->epoch, sizeof(caller->epoch), "%" PRIu64, options->epoch);
    caller->headers.authorization = text_of(caller->authorization);
    caller->headers.session = text_of(caller->session);
    caller->headers.target = text_of(caller->target);
    caller->headers.epoch = text_of(caller->epoch);
    caller->who = &caller->headers;
    return 0;
}

void caller_forget(struct caller *caller)
{
    explicit_bzero(caller, sizeof(*caller));
}
