/* SPDX-License-Identifier: Apache-2.0 */
/* See sessions.h. */
#include "sessions.h"

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "sparse.h"

int sessions_open(struct sessions *sessions)
{
    sessions->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (sessions->event_fd < 0)
        return -PF_REASON_NO_MEMORY;
    if (pthread_mutex_init(&sessions->lock, NULL) != 0) {
        close(sessions->event_fd);
        return -PF_REASON_NO_MEMORY;
    }
    return 0;
}

void sessions_close(struct sessions *sessions)
{
    pthread_mutex_destroy(&sessions->lock);
    close(sessions->event_fd);
}

struct session *sessions_find(struct sessions *sessions, struct grpc_bytes name)
{
    struct session *found = NULL;

    for (uint32_t i = 0; i < PF_LIMIT_SESSIONS_MAX && found == NULL; i++) {
        struct session *session = &sessions->all[i];
        if (session->serial != 0 && grpc_is_text(name, session->name))
            found = session;
    }
    return found;
}

static struct session *find_text(struct sessions *sessions, const char *name)
{
    return sessions_find(sessions, (struct grpc_bytes){(const uint8_t *)name, strlen(name)});
}

/* ------------------------------------------------------------------------------------------- told from above */

static bool is_session_name(const char *name)
{
    size_t length = strlen(name);

    return length > 0 && length <= PF_LIMIT_SESSION_NAME_BYTES_MAX &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

static int check(const struct pageferry_session *told, char *error, size_t error_bytes)
{
    size_t image_length = strlen(told->image);

    if (!is_session_name(told->session)) {
        sparse_explain(error, error_bytes, "a session's name has 1 to %u of a-z, 0-9 and -",
                       PF_LIMIT_SESSION_NAME_BYTES_MAX);
        return -PF_REASON_BAD_REQUEST;
    }
    if (image_length == 0 || image_length > PF_LIMIT_IMAGE_NAME_BYTES_MAX) {
        sparse_explain(error, error_bytes, "an image's name has 1 to %u bytes, not %zu",
                       PF_LIMIT_IMAGE_NAME_BYTES_MAX, image_length);
        return -PF_REASON_BAD_REQUEST;
    }
    return 0;
}

static struct session *new_session(struct sessions *sessions, const struct pageferry_session *told)
{
    struct session *session = NULL;

    for (uint32_t i = 0; i < PF_LIMIT_SESSIONS_MAX && session == NULL; i++) {
        if (sessions->all[i].serial == 0)
            session = &sessions->all[i];
    }
    if (session != NULL) {
        memset(session, 0, sizeof(*session));
        session->serial = ++sessions->last_serial;
        snprintf(session->name, sizeof(session->name), "%s", told->session);
        snprintf(session->image, sizeof(session->image), "%s", told->image);
    }
    return session;
}

static int set(struct sessions *sessions, const struct pageferry_session *told, char *error, size_t error_bytes)
{
    struct session *session = find_text(sessions, told->session);

    if (session == NULL)
        session = new_session(sessions, told);
    if (session == NULL) {
        sparse_explain(error, error_bytes, "a page server keeps at most %u sessions", PF_LIMIT_SESSIONS_MAX);
        return -PF_REASON_BUSY;
    }
    if (strcmp(session->image, told->image) != 0) {
        sparse_explain(error, error_bytes, "the session %s is of another image: %s", told->session, session->image);
        return -PF_REASON_ALREADY_ATTACHED;
    }
    memcpy(session->token_sha256, told->token_sha256, sizeof(session->token_sha256));
    session->rights = told->rights;
    session->state.phase = told->phase;
    session->state.cancel_requested = told->cancel_requested != 0;
    session->state.frozen = told->frozen != 0;
    memcpy(session->state.manifest_digest, told->manifest_digest, sizeof(session->state.manifest_digest));
    return 0;
}

int sessions_set(struct sessions *sessions, const struct pageferry_session *told, char *error, size_t error_bytes)
{
    int rc = check(told, error, error_bytes);

    if (rc != 0)
        return rc;
    pthread_mutex_lock(&sessions->lock);
    rc = set(sessions, told, error, error_bytes);
    pthread_mutex_unlock(&sessions->lock);
    return rc;
}

int sessions_drop(struct sessions *sessions, const char *name)
{
    struct session *session;

    pthread_mutex_lock(&sessions->lock);
    session = find_text(sessions, name);
    if (session != NULL)
        memset(session, 0, sizeof(*session));
    pthread_mutex_unlock(&sessions->lock);
    return session == NULL ? -PF_REASON_NO_SUCH_IMAGE : 0;
}

/* ------------------------------------------------------------------------------------------------------ news */

static struct session_news *news_of(struct session *session, uint32_t kind)
{
    return &session->news[kind - 1];
}

void sessions_ring(struct sessions *sessions)
{
    const uint64_t one = 1;

    if (write(sessions->event_fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
        return; /* it is readable already */
}

/* A target that is back takes the news back that it was silent; that it is the first stays true until it is told. */
void sessions_note(struct sessions *sessions, struct session *session, uint32_t kind, uint64_t value,
                   uint64_t page_count)
{
    struct session_news *news = news_of(session, kind);

    if (kind == PAGEFERRY_SERVER_EVENT_ATTACHED) {
        news_of(session, PAGEFERRY_SERVER_EVENT_SILENT)->number = 0;
        value |= news->number != 0 ? news->value : 0;
    }
    if (news->number == 0)
        news->number = ++sessions->last_news;
    news->epoch = session->epoch;
    news->value = value;
    news->page_count = page_count;
    sessions_ring(sessions);
}

static struct session *oldest_news(struct sessions *sessions, uint32_t *kind)
{
    struct session *found = NULL;
    uint64_t oldest = UINT64_MAX;

    for (uint32_t i = 0; i < PF_LIMIT_SESSIONS_MAX; i++) {
        struct session *session = &sessions->all[i];
        for (uint32_t j = 1; session->serial != 0 && j <= SESSIONS_NEWS_KINDS; j++) {
            uint64_t number = news_of(session, j)->number;
            if (number != 0 && number < oldest) {
                oldest = number;
                found = session;
                *kind = j;
            }
        }
    }
    return found;
}

static void tell(struct session *session, uint32_t kind, struct pageferry_server_event *event)
{
    struct session_news *news = news_of(session, kind);

    memset(event, 0, sizeof(*event));
    event->kind = kind;
    event->target = session->target;
    event->epoch = news->epoch;
    event->value = news->value;
    event->page_count = news->page_count;
    snprintf(event->session, sizeof(event->session), "%s", session->name);
    snprintf(event->text, sizeof(event->text), "%s", session->peer);
    news->number = 0;
}

int sessions_event(struct sessions *sessions, struct pageferry_server_event *event)
{
    struct session *session;
    uint32_t kind = 0;
    uint64_t rung;

    pthread_mutex_lock(&sessions->lock);
    session = oldest_news(sessions, &kind);
    if (session != NULL)
        tell(session, kind, event);
    else if (read(sessions->event_fd, &rung, sizeof(rung)) != (ssize_t)sizeof(rung))
        rung = 0; /* it was silent already */
    pthread_mutex_unlock(&sessions->lock);
    return session != NULL;
}
