# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds: short inputs from which the fuzzers start. Run it after a change of the contract.

python -m tests.fuzz.seeds
"""

import json
import struct
from pathlib import Path

import xxhash

from pageferry.v1 import pages_pb2 as pb

SEEDS = Path(__file__).parent / "seeds"
PAGE_BYTES = 4096
IMMUTABLE = (1 << 32) | 1
CONTENT_ID = 7  # of fuzz_client.c
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Fields = dict[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def block(fields: Fields) -> bytes:
    """HPACK, every field literal and never indexed."""

    def text(value: str) -> bytes:
        assert len(value) < 127
        return bytes([len(value)]) + value.encode()

    return b"".join(b"\x10" + text(name) + text(value) for name, value in fields.items())


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


# ------------------------------------------------------------------------------------------------ as a client


def request(
    stream: int, path: str, *contents: bytes, end: bool = True, who: Fields | None = None, **more: str
) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
    }
    fields["content-type"] = "application/grpc"
    fields |= {name.replace("_", "-"): value for name, value in more.items()} | (who or {})
    parts = [frame(HEADERS, END_HEADERS, stream, block(fields))]
    parts += [frame(DATA, 0, stream, message(content)) for content in contents]
    return b"".join(parts) + (frame(DATA, END_STREAM, stream) if end else b"")


def session(*parts: bytes) -> bytes:
    opening = MAGIC + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0) + frame(WINDOW, 0, 0, b"\0\x10\0\0")
    return opening + b"".join(parts)


def session_seeds() -> dict[str, bytes]:
    """Calls that say who makes them: the live image of live_source.c, whose token is the bytes 0 to 31."""
    page = "/pageferry.v1.PageService/"
    token = "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    who = {
        "authorization": token,
        "pageferry-session": "move",
        "pageferry-target": "00c0FFEE00c0ffee",
        "pageferry-epoch": "3",
    }
    first = pb.FetchPagesRequest(image="live", encodings=2).SerializeToString()
    more = [
        pb.FetchPagesRequest(runs=[5, 1, 40, 20], heartbeat=3).SerializeToString(),
        pb.FetchPagesRequest(runs=[300, 9], heartbeat=4).SerializeToString(),
    ]

    def attach(stream: int = 1, *contents: bytes, other: Fields | None = None) -> bytes:
        return request(stream, page + "FetchPages", first, *contents, end=False, who=who | (other or {}))

    def pages(stream: int, asked: pb.StreamPagesRequest) -> bytes:
        asked.image = "live"
        return request(stream, page + "StreamPages", asked.SerializeToString(), who=who)

    ask = pb.StreamPagesRequest
    get = pb.GetPageRequest(image="live", page=9).SerializeToString()
    describe = pb.DescribeImageRequest(image="live").SerializeToString()
    rounds = attach() + b"".join(
        pages(at, ask(versions_only=True, open_round=True, since_version=since << 32 | at // 2 - 1))
        for at, since in ((3, 0), (5, 5), (7, 5))
    )
    wrong = {
        "token": {"authorization": token[:-1] + "9"},
        "token_letter": {"authorization": token[:-1] + "+"},
        "token_none": {"authorization": ""},
        "name": {"pageferry-session": "mov"},
        "target": {"pageferry-target": "00c0ffee00c0ffeg"},
        "target_short": {"pageferry-target": "1"},
        "epoch": {"pageferry-epoch": "1x"},
        "epoch_huge": {"pageferry-epoch": "99999999999999999999"},
    }
    seeds = {
        "attach": attach(1, *more),
        "attach_drawn": attach(1, *more) + frame(WINDOW, 0, 0, b"\0\x10\0\0") + pages(3, ask(encodings=2)),
        "attach_nine": b"".join(attach(2 * at + 1, more[0]) for at in range(9)),
        "rounds": rounds + pages(9, ask(runs=[0, 64], encodings=2)),
        "round_bytes": attach() + pages(3, ask(open_round=True, encodings=2)),
        "live_to_end": attach() + pages(3, ask(runs=[690, 10], encodings=2)),
        "round_first": pages(1, ask(versions_only=True, open_round=True)),
        "superseded": attach(1, more[0]) + attach(3, more[1], other={"pageferry-epoch": "4"}) + attach(5),
        "other_target": attach() + attach(3, other={"pageferry-target": "00000000000000ff"}),
        "session_get": attach()
        + request(3, page + "GetPage", get, who=who)
        + request(5, page + "GetPage", get),
        "session_describe": request(
            1, page + "DescribeImage", describe, authorization=token, pageferry_session="move"
        )
        + request(3, page + "DescribeImage", describe),
        "other_image": attach() + request(3, page + "GetPage", b"\x0a\x02vm", who=who),
        **{f"wrong_{name}": attach(1, more[0], other=fields) for name, fields in wrong.items()},
    }
    stories = {
        "attach": range(10),
        "attach_drawn": (1, 7, 8, 9, 0x20),
        "rounds": (0x20, 0x40, 0x10, 0x11, 2, 4, 5, 6, 7, 8, 1),
        "round_bytes": (0x30, 0x31, 0x40),
    }
    return {
        **{name: b"\0\0" + session(content) for name, content in seeds.items()},
        **{
            f"{name}_story_{story:#04x}": bytes([0x02, story]) + session(seeds[name])
            for name, all_stories in stories.items()
            for story in all_stories
        },
        "attach_expires": b"\x10\0" + session(seeds["attach"]),
        "attach_unknown": b"\0\x80" + session(seeds["attach"]),
        "rounds_drained": b"\x0a\0" + session(seeds["rounds"]),
    }


def server_seeds() -> dict[str, bytes]:
    page, health = "/pageferry.v1.PageService/", "/grpc.health.v1.Health/"
    fetch = pb.FetchPagesRequest
    ask = [fetch(image="vm", encodings=2), fetch(runs=[5, 1, 40, 20], heartbeat=3), fetch(runs=[590, 20])]
    stream = pb.StreamPagesRequest(image="vm", runs=[0, 64, 300, 10], encodings=2)
    # field 7: list services; 3: the file of a name; 4: of a symbol; 5: an extension; 6: all extensions
    symbol = b"\x22\x19pageferry.v1.PageService"
    reflect = [b"\x3a\x00", b"\x1a\x05pages", symbol[:1] + bytes([len(symbol) - 2]) + symbol[2:]]
    reflect += [b"\x32\x01x", b"\x2a\x03\x0a\x01x", b"\x0a\x01h" + reflect[0], b""]
    files = [b"\x1a" + bytes([len(name)]) + name for name in (b"pageferry/v1/pages.proto", b"none")]
    seeds = {
        "describe": request(
            1, page + "DescribeImage", pb.DescribeImageRequest(image="vm").SerializeToString()
        ),
        "get": request(1, page + "GetPage", pb.GetPageRequest(image="vm", page=5).SerializeToString()),
        "get_end": request(1, page + "GetPage", pb.GetPageRequest(image="vm", page=700).SerializeToString()),
        "get_lost": request(1, page + "GetPage", pb.GetPageRequest(image="vm", page=650).SerializeToString()),
        "fetch": request(
            1, page + "FetchPages", *(one.SerializeToString() for one in ask), grpc_timeout="5S"
        ),
        "fetch_open": request(1, page + "FetchPages", *(one.SerializeToString() for one in ask), end=False),
        "fetch_much": request(
            1, page + "FetchPages", fetch(image="vm", runs=[0, 600]).SerializeToString(), end=False
        ),
        "stream": request(1, page + "StreamPages", stream.SerializeToString())
        + frame(WINDOW, 0, 1, b"\0\x10\0\0"),
        "fetch_to_end": request(
            1, page + "FetchPages", fetch(image="vm", runs=[690, 10]).SerializeToString()
        ),
        "stream_to_end": request(
            1, page + "StreamPages", pb.StreamPagesRequest(image="vm", runs=[660, 40]).SerializeToString()
        ),
        "stream_versions": request(
            1, page + "StreamPages", pb.StreamPagesRequest(image="vm", versions_only=True).SerializeToString()
        ),
        "stream_round": request(
            1, page + "StreamPages", pb.StreamPagesRequest(image="vm", open_round=True).SerializeToString()
        ),
        "stream_since": request(
            1,
            page + "StreamPages",
            pb.StreamPagesRequest(image="vm", since_version=1 << 40).SerializeToString(),
        ),
        "unknown": request(1, page + "None", b"") + request(3, page + "GetPage", b"\xff"),
        "metadata": request(
            1,
            page + "GetPage",
            pb.GetPageRequest(image="vm").SerializeToString(),
            authorization="Bearer x",
            pageferry_session="s",
            pageferry_target="t",
            pageferry_epoch="1",
            grpc_timeout="1n",
        ),
        "health": request(1, health + "Check", b"") + request(3, health + "Watch", b"", end=False),
        "health_none": request(1, health + "Check", b"\x0a\x01x")
        + request(3, health + "Watch", b"\x0a\x01x"),
        "reflection": request(
            1, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", *reflect, *files
        ),
        "reflection_alpha": request(
            1, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", *reflect[:3], end=False
        ),
        "two": request(1, page + "GetPage", *[pb.GetPageRequest(image="vm").SerializeToString()] * 2),
        "compressed": request(1, page + "GetPage", end=False) + frame(DATA, 1, 1, b"\1\0\0\0\1x"),
        "too_long": request(1, page + "GetPage", end=False) + frame(DATA, 1, 1, b"\0\x7f\0\0\0x"),
        "in_pieces": request(1, page + "DescribeImage", end=False)
        + frame(DATA, 0, 1, b"\0\0")
        + frame(DATA, 0, 1, b"\0\0\4\x0a")
        + frame(DATA, 1, 1, b"\2vm"),
        "cut_short": request(1, page + "DescribeImage", end=False) + frame(DATA, 1, 1, b"\0\0\0\0\4\x0a"),
        "reset": request(1, page + "FetchPages", ask[0].SerializeToString(), end=False)
        + frame(RST, 0, 1, b"\0\0\0\x08"),
        "get_http": frame(
            HEADERS, 5, 1, block({":method": "GET", ":scheme": "http", ":path": "/", ":authority": "x"})
        ),
        "no_grpc": request(1, page + "GetPage", b"", content_type="text/html"),
        "long_fields": frame(
            HEADERS,
            5,
            1,
            block({":method": "POST", ":scheme": "http", ":path": "/", ":authority": "x"})
            + block({"a": "b" * 120}) * 120,
        ),
        "ping": frame(PING, 0, 0, b"12345678") * 3 + frame(GOAWAY, 0, 0, bytes(8)),
        "timeouts": b"".join(
            request(
                2 * at + 1, page + "FetchPages", ask[0].SerializeToString(), end=False, grpc_timeout=value
            )
            for at, value in enumerate(("1H", "2M", "3S", "4m", "5u", "6n", "0S", "x", "123456789S"))
        ),
    }
    return {
        **{name: b"\0\0" + session(content) for name, content in seeds.items()},
        **{
            f"{name}_{manner:#04x}": bytes([manner, 0]) + session(seeds[name])
            for manner in (0x19, 0x5A, 0x37, 0x4B)
            for name in ("fetch_open", "stream", "health", "reflection")
        },
        **session_seeds(),
    }


# ------------------------------------------------------------------------------------------------ as a server


def answer(stream: int, *contents: bytes, end: Fields | None = None, status: str = "200") -> bytes:
    fields = {":status": status, "content-type": "application/grpc"}
    parts = [frame(HEADERS, END_HEADERS, stream, block(fields))]
    parts += [frame(DATA, 0, stream, message(content)) for content in contents]
    return b"".join(parts) + (frame(HEADERS, END_HEADERS | END_STREAM, stream, block(end)) if end else b"")


def batch(*runs: int, data: bytes = b"", **more: int) -> bytes:
    words = struct.pack(f"<{len(runs)}Q", *runs)
    digest = xxhash.xxh3_64_intdigest(words + data, seed=CONTENT_ID) if runs else 0
    encoding = pb.ENCODING_IDENTITY if data else pb.ENCODING_UNSPECIFIED
    made = pb.PageBatch(as_of=IMMUTABLE, runs=runs, digest=digest, data=data, encoding=encoding)
    made.heartbeat = more.get("heartbeat", 0)
    return made.SerializeToString()


def client_seeds() -> dict[str, bytes]:
    described = pb.DescribeImageResponse(
        content_id=CONTENT_ID,
        page_count=40,
        page_bytes=4096,
        unit_pages=1,
        region_pages=[13, 27],
        as_of=IMMUTABLE,
        batch_bytes_max=262_144,
        runs_max=4096,
        wanted_pages_max=4096,
        urgent_calls_max=8,
        encodings=2,
    )
    settings = frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
    ok = {"grpc-status": "0"}
    describe = settings + answer(1, described.SerializeToString(), end=ok)
    one = bytes(range(256)) * 16
    kind = pb
    data = batch(0, 1, kind.RUN_KIND_DATA, IMMUTABLE, data=one)
    zeros = batch(7, 1, kind.RUN_KIND_ZERO, IMMUTABLE, 14, 1, kind.RUN_KIND_LATER, IMMUTABLE)
    poison = batch(21, 1, kind.RUN_KIND_POISON, IMMUTABLE)
    other = batch(28, 1, kind.RUN_KIND_VERSION, IMMUTABLE)
    bad = data[:-1] + b"x"
    busy = {
        "grpc-status": "8",
        "grpc-message": "a%20limit%",
        "pageferry-reason": "BUSY",
        "pageferry-retry-after-ms": "100",
    }
    live = pb.DescribeImageResponse()
    live.CopyFrom(described)
    live.live = True
    changed = pb.DescribeImageResponse()
    changed.CopyFrom(described)
    changed.page_count = 41

    def failing(status: str, **more: str) -> bytes:
        fields = {":status": "200", "content-type": "application/grpc", "grpc-status": status, **more}
        return settings + frame(HEADERS, END_HEADERS | END_STREAM, 1, block(fields))

    seeds = {
        "pages": describe + answer(3, batch(), data, zeros, poison, other, batch(heartbeat=1)),
        "bad_digest": describe + answer(3, batch(), bad, bad) + describe + answer(3, data),
        "ends": describe + answer(3, batch(), data, end=ok) + describe + answer(3, zeros, end=busy),
        "in_pieces": describe
        + answer(3)
        + frame(DATA, 0, 3, message(data)[:3])
        + frame(DATA, 0, 3, message(data)[3:2000])
        + frame(DATA, 0, 3, message(data)[2000:]),
        "live": settings + answer(1, live.SerializeToString(), end=ok),
        "other_image": settings + answer(1, changed.SerializeToString(), end=ok),
        "twice": settings + answer(1, described.SerializeToString(), described.SerializeToString(), end=ok),
        "empty": settings + answer(1, end=ok),
        "no_message": settings + answer(1, b"\xff\xff"),
        "refused": failing("5", **{"pageferry-reason": "NO_SUCH_IMAGE", "grpc-message": "no%21%zz"}),
        "unimplemented": failing("12"),
        "odd_status": failing("x", **{"pageferry-retry-after-ms": "x"}),
        "goaway": describe + frame(GOAWAY, 0, 0, bytes(8)) + answer(3, data, end=ok),
        "reset": describe
        + b"".join(frame(RST, 0, 3, bytes([0, 0, 0, code])) for code in (7,))
        + describe
        + frame(RST, 0, 3, b"\0\0\0\x08")
        + describe
        + frame(RST, 0, 3, b"\0\0\0\x0b"),
        "reset_security": settings
        + frame(RST, 0, 1, b"\0\0\0\x0c")
        + settings
        + frame(RST, 0, 1, b"\0\0\0\x02"),
        "http": settings + frame(HEADERS, 5, 1, block({":status": "404", "content-type": "text/html"})),
        **{
            f"http_{code}": settings + frame(HEADERS, 5, 1, block({":status": code}))
            for code in ("400", "401", "403", "429", "500")
        },
        **{f"reset_{code}": settings + frame(RST, 0, 1, bytes([0, 0, 0, code])) for code in (7, 8, 11, 12)},
        "informational": settings
        + frame(HEADERS, END_HEADERS, 1, block({":status": "103"}))
        + answer(1, described.SerializeToString(), end=ok),
        "no_status": settings + answer(1, described.SerializeToString()) + frame(DATA, 1, 1),
        "cut_short": describe
        + answer(3)
        + frame(DATA, 0, 3, message(data)[:99])
        + frame(HEADERS, 5, 3, block(ok)),
        "long_fields": settings
        + frame(HEADERS, 5, 1, block({":status": "200"}) + block({"a": "b" * 120}) * 120),
        "compressed": describe + answer(3) + frame(DATA, 0, 3, b"\1\0\0\0\1x"),
        "too_long": describe + answer(3) + frame(DATA, 0, 3, b"\0\x7f\0\0\0x"),
    }
    wrong = {
        "of_no_time": pb.PageBatch(runs=[0, 1, kind.RUN_KIND_ZERO, IMMUTABLE]).SerializeToString(),
        "no_kind": batch(0, 1, 9, IMMUTABLE),
        "no_version": batch(0, 1, kind.RUN_KIND_ZERO, 0),
        "huge_version": batch(0, 1, kind.RUN_KIND_ZERO, 1 << 60),
        "many_pages": batch(0, 1 << 40, kind.RUN_KIND_DATA, IMMUTABLE, data=one),
        "short_data": batch(0, 2, kind.RUN_KIND_DATA, IMMUTABLE, data=one),
        "encoded": data.replace(b"\x18\x01", b"\x18\x02", 1),
    }
    seeds |= {f"wrong_{name}": describe + answer(3, batch(), content) for name, content in wrong.items()}
    later = (1 << 32) | 3

    def mapped(stream: int, as_of: int, *batches: bytes, status: Fields = ok) -> bytes:
        return answer(stream, *(update(one, as_of) for one in batches), end=status)

    def update(content: bytes, as_of: int, **more: object) -> bytes:
        made = pb.PageBatch.FromString(content)
        made.as_of = as_of
        for name, value in more.items():
            setattr(made, name, value)
        return made.SerializeToString()

    version, zero, lost = kind.RUN_KIND_VERSION, kind.RUN_KIND_ZERO, kind.RUN_KIND_POISON
    all_pages = (batch(0, 30, version, IMMUTABLE, 30, 9, zero, IMMUTABLE), batch(39, 1, lost, IMMUTABLE))
    told = update(batch(heartbeat=1), later, phase=pb.PHASE_PRECOPY, cancel_requested=True)
    frozen = update(batch(), later, manifest_digest=bytes(16))
    attached = settings + answer(1, live.SerializeToString(), end=ok) + answer(3, batch(), told)
    last = mapped(9, later, batch(14, 1, version, later), batch(21, 1, zero, later))
    two_rounds = mapped(5, IMMUTABLE, *all_pages) + mapped(7, later, batch(0, 15, version, later))
    refused = {"grpc-status": "9", "grpc-message": "no", "pageferry-reason": "WRONG_PHASE"}
    moves = {
        "move": attached
        + two_rounds
        + last
        + frame(DATA, 0, 3, message(data))
        + frame(DATA, 0, 3, message(frozen)),
        "move_lagging": attached
        + mapped(5, IMMUTABLE, *all_pages) * 2
        + mapped(9, IMMUTABLE, batch(0, 2, 4, later)),
        "move_broken": attached
        + mapped(5, IMMUTABLE, all_pages[0], status=busy)
        + mapped(7, IMMUTABLE, all_pages[1], all_pages[0])
        + mapped(9, IMMUTABLE, data),
        "move_part": attached
        + mapped(5, IMMUTABLE, all_pages[0])
        + mapped(7, later, batch(), status=refused),
        "move_back": attached + mapped(5, later, *all_pages) + mapped(7, IMMUTABLE, batch()),
        "move_outside": attached
        + mapped(5, later, batch(39, 2, version, later), batch(0, 1, version, later)),
        "move_digest": attached + mapped(5, later, bad, bad) + mapped(7, later, bad),
        "move_roundless": attached + mapped(5, 1 << 32, batch(0, 40, version, 1 << 32)),
        "move_pieces": attached
        + answer(5)
        + frame(DATA, 0, 5, message(all_pages[0])[:20])
        + frame(DATA, 0, 5, message(all_pages[0])[20:])
        + frame(DATA, 0, 5, message(all_pages[1]))
        + frame(HEADERS, END_HEADERS | END_STREAM, 5, block(ok)),
    }
    bulk = {
        "ranges": settings
        + answer(1, batch(0, 1, 1, IMMUTABLE, 1, 15, 2, IMMUTABLE, data=one), end=ok)
        + answer(3, batch(16, 8, 4, IMMUTABLE), end=ok),
        "ranges_short": settings
        + answer(1, batch(0, 9, 2, IMMUTABLE), batch(9, 7, 2, IMMUTABLE), end=ok)
        + answer(3, batch(16, 1, 4, IMMUTABLE), batch(17, 7, 2, IMMUTABLE), end=ok),
        "ranges_bad": settings + answer(1, bad) + answer(3, data, data, data, end=busy),
        "ranges_pieces": settings
        + answer(1)
        + frame(DATA, 0, 1, message(data)[:1000])
        + answer(3)
        + frame(DATA, 0, 3, message(data)[:1000])
        + frame(DATA, 0, 1, message(data)[1000:])
        + frame(DATA, 0, 3, message(data)[1000:]),
    }
    return {
        **{
            f"{name}_{manner:#04x}": bytes([manner]) + content
            for name, content in seeds.items()
            for manner in ((0x00, 0x3A) if name in ("pages", "in_pieces") else (0x18,))
        },
        "pages_private": b"\x04" + seeds["pages"],
        **{
            f"{name}_{manner:#04x}": bytes([manner]) + content
            for name, content in moves.items()
            for manner in ((0x58, 0x78, 0x50) if name == "move" else (0x58,))
        },
        **{
            f"{name}_{manner:#04x}": bytes([manner]) + content
            for name, content in bulk.items()
            for manner in ((0x01, 0x03, 0x05, 0x07, 0x1B) if name == "ranges_short" else (0x01, 0x1B))
        },
    }


# ------------------------------------------------------------------------------------------------- the others


def message_seeds() -> dict[str, bytes]:
    described = pb.DescribeImageResponse(
        content_id=1,
        page_count=2,
        page_bytes=4096,
        unit_pages=1,
        region_pages=[1, 300],
        live=True,
        as_of=IMMUTABLE,
        batch_bytes_max=5,
        runs_max=6,
        wanted_pages_max=7,
        urgent_calls_max=8,
        encodings=9,
    )
    stream = pb.StreamPagesRequest(
        image="vm", since_version=3, runs=[9, 1, 5, 1, 1, 2], versions_only=True, open_round=True, encodings=2
    )
    full = pb.PageBatch(
        as_of=IMMUTABLE,
        runs=[0, 1, 1, IMMUTABLE, 5, 2, 2, IMMUTABLE],
        encoding=pb.ENCODING_IDENTITY,
        digest=5,
        heartbeat=6,
        phase=pb.PHASE_POSTCOPY,
        cancel_requested=True,
        manifest_digest=b"12345678",
        data=bytes(PAGE_BYTES),
    )
    return {
        "describe_request": b"\0" + pb.DescribeImageRequest(image="vm").SerializeToString(),
        "describe_response": b"\1" + described.SerializeToString(),
        "regions_unpacked": b"\1" + b"\x28\x05\x28\x06",
        "get_request": b"\2" + pb.GetPageRequest(image="vm", page=77).SerializeToString(),
        "fetch_request": b"\3"
        + pb.FetchPagesRequest(image="vm", encodings=2, runs=[5, 1], heartbeat=9).SerializeToString(),
        "stream_request": b"\4" + stream.SerializeToString(),
        "page_batch": b"\5" + full.SerializeToString(),
        "runs_unpacked": b"\3" + b"\x18\x05\x18\x01\x18\x02\x18\x01\x18\x09\x18\x03",
        "other_types": b"\5" + b"\x0d1234\x3d1234\xf8\x3f\x01\xa2\x06\x01x",
    }


def frame_seeds() -> dict[str, bytes]:
    def one(kind: int, sequence: int = 0, offset: int = 0, length: int = 0) -> bytes:
        return struct.pack("<IIQQQ", 0x50664D31, kind, sequence, offset, length)

    all_kinds = one(1) + one(2, 5, 8192, 4096) + one(3, 1) + one(4)
    return {
        **{
            f"frames_{manner}": bytes([manner]) + all_kinds
            for manner in (0, 4, 8, 1, 5, 21, 41, 61, 101, 2, 6, 10, 14, 3)
        },
        "wrong_magic": b"\0" + one(2) + bytes(32),
        "answer_to_nothing": b"\xee" + one(3) + one(4),
    }


def engine_seeds() -> dict[str, bytes]:
    return {
        "shared": bytes([4, 3, 5, 8, 4, 0, 0, 0, 9, 0, 13, 20, 6, 0, 8, 4, 4, 7, 4, 0, 10, 0, 40]),
        "private": bytes([1, 8, 3, 2, 4, 1, 0, 0, 40, 0, 6, 0, 8, 9, 4, 7, 4, 0, 7, 4, 0, 4]),
        "poison": bytes([0, 8, 3, 1, 4, 0, 2, 0, 8, 0, 9, 0, 44, 15, 0, 12, 13, 200]),
    }


def simulation_seeds() -> dict[str, bytes]:
    return {
        "plain": bytes([0]) + bytes(at * 37 % 251 for at in range(300)),
        "kills": bytes([1]) + bytes(at * 59 % 250 for at in range(600)),
    }


def handoff_seeds() -> dict[str, bytes]:
    region = {"base_host_virt_addr": 1 << 46, "size": 1 << 20, "offset": 0, "page_size": 4096}
    older = {"base_host_virt_addr": 1 << 40, "size": 4096, "offset": 1 << 20, "page_size_kib": 4096}
    return {
        "one": json.dumps([{**region, "pageferry_frames": 1}]).encode(),
        "two": json.dumps([older, region]).encode(),
        "track": json.dumps([{**region, "pageferry_role": "track"}]).encode(),
        "onward": json.dumps([{**region, "pageferry_role": "both", "pageferry_pid": 4242}]).encode(),
        "onward_track": json.dumps([{**region, "pageferry_role": "track", "pageferry_pid": 4242}]).encode(),
        "nobody": json.dumps([{**region, "pageferry_role": "neither", "pageferry_pid": 0}]).encode(),
        "nested": b'[{"a\\"]": [[{"b": "\\\\"}]], "c": 1e3, "d": null, "e": true}]',
        "huge": b'[{"size": 18446744073709551616, "offset": -1}]',
        "many": json.dumps([{**region, "offset": at << 20} for at in range(65)]).encode(),
    }


def main() -> None:
    sets = {
        "messages": message_seeds(),
        "frames": frame_seeds(),
        "server": server_seeds(),
        "client": client_seeds(),
        "engine": engine_seeds(),
        "simulation": simulation_seeds(),
        "handoff": handoff_seeds(),
    }
    for name, seeds in sets.items():
        folder = SEEDS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for seed, content in seeds.items():
            (folder / seed).write_bytes(content)


if __name__ == "__main__":
    main()
