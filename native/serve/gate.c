/* SPDX-License-Identifier: Apache-2.0 */
/* See gate.h. */
#include "gate.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "serve.h"

static uint32_t refuse(uint32_t reason, const char *sentence, const char **why)
{
    *why = sentence;
    return reason;
}

static uint32_t stranger(const char **why)
{
    return refuse(PF_REASON_NOT_ALLOWED, "no such session, or not with this token", why);
}

static uint32_t outdated(const char **why)
{
    return refuse(PF_REASON_SUPERSEDED, "a newer worker of this target has taken over", why);
}

/* ---------------------------------------------------------------------------------------------- the headers */

static int hex_digit(uint8_t letter)
{
    int digit = -1;

    if (letter >= '0' && letter <= '9')
        digit = letter - '0';
    else if (letter >= 'a' && letter <= 'f')
        digit = letter - 'a' + 10;
    else if (letter >= 'A' && letter <= 'F')
        digit = letter - 'A' + 10;
    return digit;
}

/* 0: it is no number, or it is 0, which is none either. */
static uint64_t read_target(struct grpc_bytes text)
{
    uint64_t target = 0;

    if (text.length != 16)
        return 0;
    for (size_t i = 0; i < text.length; i++) {
        int digit = hex_digit(text.data[i]);
        if (digit < 0)
            return 0;
        target = target << 4 | (uint64_t)digit;
    }
    return target;
}

static uint64_t read_epoch(struct grpc_bytes text)
{
    uint64_t epoch = 0;

    for (size_t i = 0; i < text.length; i++) {
        uint64_t digit = (uint64_t)text.data[i] - '0';
        if (digit > 9 || epoch > (UINT64_MAX - digit) / 10)
            return 0;
        epoch = epoch * 10 + digit;
    }
    return epoch;
}

static void name_peer(int fd, char *text, size_t capacity)
{
    struct sockaddr_storage peer = {0};
    socklen_t length = sizeof(peer);
    char host[INET6_ADDRSTRLEN] = "";

    snprintf(text, capacity, "unix");
    if (getpeername(fd, (struct sockaddr *)&peer, &length) != 0)
        return;
    if (peer.ss_family == AF_INET) {
        const struct sockaddr_in *address = (const struct sockaddr_in *)&peer;
        inet_ntop(AF_INET, &address->sin_addr, host, sizeof(host));
        snprintf(text, capacity, "%s:%u", host, ntohs(address->sin_port));
    } else if (peer.ss_family == AF_INET6) {
        const struct sockaddr_in6 *address = (const struct sockaddr_in6 *)&peer;
        inet_ntop(AF_INET6, &address->sin6_addr, host, sizeof(host));
        snprintf(text, capacity, "[%s]:%u", host, ntohs(address->sin6_port));
    }
}

/* -------------------------------------------------------------------------------- with the table's lock held */

/* Is the pass of this session as it is now? */
static bool holds(const struct gate_pass *pass)
{
    return pass->session != NULL && pass->session->serial == pass->serial;
}

/* Who comes with the token, against who is attached. */
static uint32_t check_worker(const struct session *session, const struct gate_pass *pass, const char **why)
{
    if (session->target != 0 && pass->target != 0 && pass->target != session->target)
        return refuse(PF_REASON_ALREADY_ATTACHED, "the session has another target", why);
    if (session->target != 0 && pass->target != 0 && pass->epoch < session->epoch)
        return outdated(why);
    return 0;
}

static uint32_t check_rights(const struct session *session, const struct gate_pass *pass, uint32_t rights,
                             const char **why)
{
    if (pass->wish != GATE_LOOK && (session->rights & rights) != rights)
        return refuse(PF_REASON_WRONG_PHASE, "the session is not in a phase that allows this", why);
    if (pass->wish == GATE_PAGES && session->target == 0)
        return refuse(PF_REASON_WRONG_PHASE, "no target has attached to the session: open FetchPages first", why);
    return 0;
}

/* A newer worker: what the older ones have open stands no more. */
static void take_over(struct sessions *sessions, struct session *session, uint64_t epoch)
{
    session->epoch = epoch;
    sessions_note(sessions, session, PAGEFERRY_SERVER_EVENT_SUPERSEDED, 0, 0);
    if (session->urgent_count > 0)
        sessions_note(sessions, session, PAGEFERRY_SERVER_EVENT_SILENT, 0, 0);
    session->urgent_count = 0;
}

/* The oldest FetchPages gives its place to one too many. True: one had to. */
static bool add_urgent(struct session *session, struct gate_pass *pass)
{
    bool full = session->urgent_count == PF_LIMIT_URGENT_CALLS_MAX;

    if (full) {
        session->urgent_count--;
        memmove(session->urgent, session->urgent + 1, session->urgent_count * sizeof(session->urgent[0]));
    }
    pass->urgent = ++session->urgent_last;
    session->urgent[session->urgent_count++] = pass->urgent;
    return full;
}

static bool stands(const struct session *session, uint64_t urgent)
{
    bool found = urgent == 0;

    for (uint32_t i = 0; i < session->urgent_count; i++)
        found = found || session->urgent[i] == urgent;
    return found;
}

/* The call is let in. True: calls of others have to end for it. */
static bool let_in(struct sessions *sessions, struct session *session, struct gate_pass *pass, const char *peer)
{
    bool first = session->target == 0, others = false;

    if (pass->wish == GATE_LOOK)
        return false;
    if (first) {
        session->target = pass->target;
        session->epoch = pass->epoch;
    } else if (pass->epoch > session->epoch) {
        take_over(sessions, session, pass->epoch);
        others = true;
    }
    if (pass->wish == GATE_ATTACH) {
        memcpy(session->peer, peer, sizeof(session->peer));
        if (session->urgent_count == 0)
            sessions_note(sessions, session, PAGEFERRY_SERVER_EVENT_ATTACHED, first, 0);
        others = add_urgent(session, pass) || others;
    }
    return others;
}

/* ---------------------------------------------------------------------------------------------------- calls */

static uint32_t check_session(struct sessions *sessions, const struct grpc_headers *headers,
                              const uint8_t hash[TOKEN_HASH_BYTES], struct gate_pass *pass, const char **why)
{
    static const uint8_t no_hash[TOKEN_HASH_BYTES];
    struct session *session = sessions_find(sessions, headers->session);
    bool same = token_same(hash, session == NULL ? no_hash : session->token_sha256); /* as long, whoever asks */
    bool optional = pass->wish == GATE_LOOK && headers->target.length == 0 && headers->epoch.length == 0;
    uint32_t reason = 0;

    if (session == NULL || !same)
        return stranger(why);
    pass->session = session;
    pass->serial = session->serial;
    pass->target = read_target(headers->target);
    pass->epoch = read_epoch(headers->epoch);
    if ((pass->target == 0 || pass->epoch == 0) && !optional)
        return refuse(PF_REASON_BAD_REQUEST, "a session needs pageferry-target, 16 hex digits, and pageferry-epoch, "
                      "a number from 1", why);
    reason = check_worker(session, pass, why);
    return reason != 0 ? reason : check_rights(session, pass, PAGEFERRY_RIGHT_PAGES, why);
}

uint32_t gate_call(struct worker *worker, const struct grpc_headers *headers, enum gate_wish wish, int fd,
                   struct gate_pass *pass, const char **why)
{
    struct service *service = worker->service;
    uint8_t hash[TOKEN_HASH_BYTES];
    char peer[SESSIONS_PEER_BYTES] = "";
    bool others = false;
    uint32_t reason = 0;

    memset(pass, 0, sizeof(*pass));
    pass->wish = wish;
    if (atomic_load(&service->draining) != 0)
        return refuse(PF_REASON_GOING_AWAY, "the server drains", why);
    if (headers->session.length == 0 && headers->authorization.length == 0)
        return 0;
    if (!token_hash(worker->hasher, headers->authorization, hash))
        return stranger(why);
    if (wish == GATE_ATTACH)
        name_peer(fd, peer, sizeof(peer));
    pthread_mutex_lock(&service->sessions.lock);
    reason = check_session(&service->sessions, headers, hash, pass, why);
    if (reason == 0)
        others = let_in(&service->sessions, pass->session, pass, peer);
    else
        pass->session = NULL;
    pthread_mutex_unlock(&service->sessions.lock);
    if (others)
        serve_ring_all(service);
    return reason;
}

/* The session's own image, and no other. Its name, or a reason. */
static uint32_t check_image(struct service *service, const struct gate_pass *pass, struct grpc_bytes name,
                            const char **why)
{
    uint32_t reason = 0;

    pthread_mutex_lock(&service->sessions.lock);
    if (!holds(pass))
        reason = stranger(why);
    else if (!grpc_is_text(name, pass->session->image))
        reason = refuse(PF_REASON_NOT_ALLOWED, "the session is of another image", why);
    pthread_mutex_unlock(&service->sessions.lock);
    return reason;
}

uint32_t gate_image(struct service *service, const struct gate_pass *pass, struct grpc_bytes name,
                    struct image **image, const char **why)
{
    uint32_t reason = pass->session == NULL ? 0 : check_image(service, pass, name, why);

    *image = NULL;
    if (reason != 0)
        return reason;
    *image = images_take(&service->images, name);
    if (*image == NULL && atomic_load(&service->serving) == 0)
        reason = refuse(PF_REASON_GOING_AWAY, "this server has not read all of its images yet", why);
    else if (*image == NULL)
        reason = refuse(PF_REASON_NO_SUCH_IMAGE, "this server has no image of this name", why);
    else if ((*image)->live && pass->session == NULL && pass->wish != GATE_LOOK) {
        images_release(*image);
        *image = NULL;
        reason = refuse(PF_REASON_NOT_ALLOWED, "the memory of a running VM is served to its session alone", why);
    }
    return reason;
}

uint32_t gate_look(struct service *service, const struct gate_pass *pass, uint32_t rights, const char **why)
{
    const struct session *session = pass->session;
    uint32_t reason = 0;

    if (session == NULL)
        return 0;
    pthread_mutex_lock(&service->sessions.lock);
    if (!holds(pass))
        reason = stranger(why);
    if (reason == 0)
        reason = check_worker(session, pass, why);
    if (reason == 0)
        reason = check_rights(session, pass, rights, why);
    if (reason == 0 && !stands(session, pass->urgent))
        reason = refuse(PF_REASON_GOING_AWAY, "the session has opened more FetchPages calls than urgent_calls_max", why);
    pthread_mutex_unlock(&service->sessions.lock);
    return reason;
}

bool gate_state(struct service *service, const struct gate_pass *pass, struct session_state *state)
{
    bool found;

    if (pass->session == NULL)
        return false;
    pthread_mutex_lock(&service->sessions.lock);
    found = holds(pass);
    if (found)
        *state = pass->session->state;
    pthread_mutex_unlock(&service->sessions.lock);
    return found;
}

void gate_settled(struct service *service, const struct gate_pass *pass, uint64_t as_of, uint64_t page_count)
{
    pthread_mutex_lock(&service->sessions.lock);
    if (holds(pass))
        sessions_note(&service->sessions, pass->session, PAGEFERRY_SERVER_EVENT_ROUND, as_of, page_count);
    pthread_mutex_unlock(&service->sessions.lock);
}

void gate_leave(struct service *service, struct gate_pass *pass)
{
    struct session *session = pass->session;
    uint32_t kept = 0;

    if (session == NULL || pass->urgent == 0)
        return;
    pthread_mutex_lock(&service->sessions.lock);
    if (holds(pass) && stands(session, pass->urgent)) {
        for (uint32_t i = 0; i < session->urgent_count; i++) {
            if (session->urgent[i] != pass->urgent)
                session->urgent[kept++] = session->urgent[i];
        }
        session->urgent_count = kept;
        if (kept == 0)
            sessions_note(&service->sessions, session, PAGEFERRY_SERVER_EVENT_SILENT, 0, 0);
    }
    pthread_mutex_unlock(&service->sessions.lock);
    pass->session = NULL;
}
