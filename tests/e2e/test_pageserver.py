# SPDX-License-Identifier: Apache-2.0
"""`pageserver` as a user starts it: serves, answers on both ports, drains, and says what is wrong.

What the data port does with every request is tests/wire's; here it is the program around it.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address, listening
from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from pageserver.dataplane import Progress, inspect
from pageserver.images import ImageFile, ImageSpec
from tests.support.processes import Process, census, finished, script, wait_no_more
from tests.wire.page_server import ROOT, Image, Urgent, checked, make_image, page_bytes, trailers_of

HEALTH = health_pb2.HealthCheckResponse
PORTS = ("data", "control")
# more than all buffers between a page server and a client that does not read
STALLING_PAGES = 16_384
GHZ = shutil.which("ghz") or shutil.which("ghz", path=ROOT / "build/bin")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    folder = tmp_path_factory.mktemp("images")
    return {
        "a": make_image(folder / "a", 600, [*range(100), *range(200, 240, 2), 599], range(300, 310)),
        "b": make_image(folder / "b", 96, range(40, 50)),
    }


def image_options(images: dict[str, Image]) -> list[str]:
    return [f"--image={name}={image.path}" for name, image in images.items()]


def start(
    folder: Path, images: dict[str, Image], *more: object, control: str = "127.0.0.1:0", **options: Any
) -> Process:
    listen = ("--data-listen=127.0.0.1:0", f"--control-listen={control}")
    return script("pageserver", "serve", *image_options(images), *listen, *more, folder=folder, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, images: dict[str, Image]) -> Iterator[Process]:
    more = ("--regions", "a=500,100", "--metrics-listen", "127.0.0.1:0")
    with start(tmp_path_factory.mktemp("server"), images, *more, ready=True) as running:
        yield running


@pytest.fixture
def stalling(tmp_path: Path) -> Image:
    """Long enough that a call for all of it stays open while nobody reads."""
    return make_image(tmp_path / "long", STALLING_PAGES, range(STALLING_PAGES))


def check(channel: grpc.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer: HEALTH = stub.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True)
    return answer.status


def metrics(server: Process) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.ready['metrics']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def log_entries(process: Process) -> list[dict[str, Any]]:
    """Every line of its log: each must be one JSON object with the three keys that all have."""
    entries = [json.loads(line) for line in process.log.splitlines()]
    for entry in entries:
        assert list(entry)[:2] == ["event", "level"]
        assert list(entry)[-1] == "timestamp"
    return entries


def one(entries: list[dict[str, Any]], event: str) -> dict[str, Any]:
    (found,) = (entry for entry in entries if entry["event"] == event)
    return found


# ----------------------------------------------------------------------------------------------------- serves


@pytest.mark.parametrize("name", ["a", "b"])
def test_every_page_of_two_images(server: Process, images: dict[str, Image], name: str) -> None:
    image = images[name]
    with grpc.insecure_channel(server.ready["data"]) as channel:
        stub = PageServiceStub(channel)
        facts = stub.DescribeImage(pb.DescribeImageRequest(image=name))
        assert (facts.page_count, facts.content_id) == (image.page_count, image.content_id)
        assert list(facts.region_pages) == ([500, 100] if name == "a" else [96])
        request = pb.StreamPagesRequest(image=name, runs=[0, image.page_count])
        seen = [page for batch in stub.StreamPages(request) for page, _ in checked(batch, image)]
        assert seen == list(range(image.page_count))
        urgent = Urgent(stub, name)
        assert not next(urgent.batches).runs
        urgent.ask(0, 1)
        assert [page for page, _ in checked(next(urgent.batches), image)] == [0]
        urgent.half_close()
        assert list(urgent.batches) == []


def test_the_ready_file_and_the_log_name_the_ports(server: Process, images: dict[str, Image]) -> None:
    assert server.ready.keys() == {"pid", "data", "control", "metrics"}
    assert server.ready["pid"] == server.pid
    assert server.output == "", "standard output is for results"
    entries = log_entries(server)
    serving = one(entries, "serving")
    assert {port: serving[port] for port in (*PORTS, "metrics")} == {
        port: server.ready[port] for port in (*PORTS, "metrics")
    }
    told = {entry["image"]: entry for entry in entries if entry["event"] == "image"}
    for name, image in images.items():
        assert told[name]["content_id"] == f"{image.content_id:016x}"
        assert (told[name]["pages"], told[name]["data_pages"]) == (image.page_count, len(image.pages))
    assert "insecure_network" not in server.log


@pytest.mark.parametrize("port", PORTS)
def test_health(server: Process, port: str) -> None:
    with grpc.insecure_channel(server.ready[port]) as channel:
        assert check(channel) == HEALTH.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check(channel, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("port", "ours"),
    [("data", ["pageferry.v1.PageService"]), ("control", ["pageferry.v1.MigrationService"])],
)
def test_reflection(server: Process, port: str, ours: list[str]) -> None:
    standard = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]
    standard.append("grpc.reflection.v1alpha.ServerReflection")
    with grpc.insecure_channel(server.ready[port]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert sorted(database.get_services()) == sorted([*standard, *ours])
        for name in [*standard, *ours]:
            file = database.FindFileContainingSymbol(name)
            assert name in [f"{file.package}.{service.name}" for service in file.service]


@pytest.mark.skipif(GHZ is None, reason="no ghz: make ghz builds it where there is Go")
@pytest.mark.parametrize("port", PORTS)
def test_unary_by_reflection_with_ghz(server: Process, port: str) -> None:
    call, data = ("pageferry.v1.PageService/GetPage", {"image": "a", "page": "{{randomInt 0 599}}"})
    if port == "control":
        call, data = "grpc.health.v1.Health/Check", {}
    arguments = ["--insecure", "--call", call, "-d", json.dumps(data), "-O", "json", "-n", "50", "-c", "4"]
    done = subprocess.run(
        [str(GHZ), *arguments, server.ready[port]], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["statusCodeDistribution"] == {"OK": 50}


def test_metrics_count_what_is_served(server: Process, images: dict[str, Image]) -> None:
    before = metrics(server)
    with grpc.insecure_channel(server.ready["data"]) as channel:
        request = pb.StreamPagesRequest(image="b", runs=[0, 96])
        list(PageServiceStub(channel).StreamPages(request))
    after = metrics(server)
    moved = {name: after[name] - before[name] for name in before}
    assert moved["pageferry_sent_pages_total"] == len(images["b"].pages)
    assert moved["pageferry_sent_zero_pages_total"] == 96 - len(images["b"].pages)
    assert moved["pageferry_wire_out_bytes_total"] > len(images["b"].pages) * 4096
    assert after["pageferry_serving"] == 1


def test_clients_that_come_and_go_leave_nothing(server: Process) -> None:
    """Descriptors and threads of the server, after the first client has made it allocate what it keeps."""

    def visit() -> None:
        for port in PORTS:
            with grpc.insecure_channel(server.ready[port]) as channel:
                check(channel)
                if port == "data":
                    PageServiceStub(channel).GetPage(pb.GetPageRequest(image="a", page=1))
        metrics(server)

    visit()
    before = census(server.pid)
    for _ in range(5):
        visit()
    wait_no_more(server.pid, before)


def test_threads_and_unix_sockets(tmp_path: Path, images: dict[str, Image]) -> None:
    options = ["--threads", "3", f"--control-listen=unix:{tmp_path}/control"]
    named = [*image_options(images), f"--data-listen=unix:{tmp_path}/data", *options]
    with script("pageserver", "serve", *named, folder=tmp_path, ready=True) as running:
        assert running.ready["data"] == f"unix:{tmp_path}/data"
        for port in PORTS:
            assert (tmp_path / port).stat().st_mode & 0o777 == 0o600
            with grpc.insecure_channel(running.ready[port]) as channel:
                assert check(channel) == HEALTH.SERVING
        assert running.end() == 0
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "control").exists()


def test_ready_down_a_descriptor(tmp_path: Path, images: dict[str, Image]) -> None:
    reader, writer = os.pipe()
    with (
        os.fdopen(reader) as down,
        start(tmp_path, images, f"--ready-fd={writer}", pass_fds=(writer,)) as running,
    ):
        os.close(writer)
        ready = json.loads(down.read())  # to its end: the server has closed it
        assert ready["pid"] == running.pid
        with grpc.insecure_channel(ready["control"]) as channel:
            assert check(channel) == HEALTH.SERVING


def test_another_network_is_served_with_a_warning(tmp_path: Path, images: dict[str, Image]) -> None:
    more = ("--data-listen=0.0.0.0:0", "--insecure-network")
    with start(tmp_path, images, *more, ready=True) as running:
        assert one(log_entries(running), "insecure_network")["level"] == "warning"
        assert running.ready["data"].startswith("0.0.0.0:")


# ------------------------------------------------------------------------------------- before images are read

# Reads an image only when it may no longer: what a very large one does.
READS_FOR_EVER = """
import sys, time
import pageserver.server as server

inspect = server.inspect

def for_ever(image, progress, left_out):
    while not progress.shared.cancel:
        time.sleep(0.01)
    return inspect(image, progress, left_out)

server.inspect = for_ever
sys.argv[0] = "pageserver"
from pageserver.cli import main
main()
"""


@pytest.fixture
def reading(tmp_path: Path, images: dict[str, Image]) -> Iterator[Process]:
    arguments = [f"--data-listen=unix:{tmp_path}/data", f"--control-listen=unix:{tmp_path}/control"]
    command = [sys.executable, "-c", READS_FOR_EVER, "serve", *image_options(images), *arguments]
    with Process([*command, "--ready-fd=1"], folder=tmp_path) as running:
        running.wait_until((tmp_path / "control").exists, "the control port")
        yield running


def test_not_serving_until_all_images_are_read(reading: Process, tmp_path: Path) -> None:
    for port in PORTS:
        with grpc.insecure_channel(f"unix:{tmp_path}/{port}") as channel:
            assert check(channel) == HEALTH.NOT_SERVING
            if port == "control":
                assert check(channel, "liveness") == HEALTH.SERVING
    with grpc.insecure_channel(f"unix:{tmp_path}/data") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            PageServiceStub(channel).DescribeImage(pb.DescribeImageRequest(image="a"))
        assert trailers_of(caught.value)["pageferry-reason"] == "GOING_AWAY"
    reading.wait_log('"reading"')
    assert reading.output == "", "nobody is told that it is ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_the_reading_up(reading: Process, number: signal.Signals) -> None:
    assert reading.end(number) == 75
    assert one(log_entries(reading), "refused")["reason"] == "CANCELLED"


def test_a_look_that_is_given_up(images: dict[str, Image]) -> None:
    image = ImageFile.open(ImageSpec("a", images["a"].path))
    progress = Progress()
    facts = inspect(image, progress)
    assert facts.content_id == images["a"].content_id
    assert progress.done_bytes == progress.total_bytes == 600 * 4096
    progress.cancel()
    with pytest.raises(PageferryError) as caught:
        inspect(image, progress)
    assert caught.value.reason is Reason.CANCELLED
    image.close()


# ----------------------------------------------------------------------------------------------------- drains


def test_sigterm_tells_an_open_call_and_ends_with_0(tmp_path: Path, images: dict[str, Image]) -> None:
    with (
        start(tmp_path, images, ready=True) as running,
        grpc.insecure_channel(running.ready["data"]) as channel,
    ):
        urgent = Urgent(PageServiceStub(channel), "a")
        next(urgent.batches)
        urgent.ask(3, 1)
        assert [page for page, _ in checked(next(urgent.batches), images["a"])] == [3]
        assert running.end() == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(urgent.batches)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert trailers_of(caught.value)["pageferry-reason"] == "GOING_AWAY"
        entries = log_entries(running)
        assert one(entries, "draining")["open_calls"] == 1
        assert entries[-1]["event"] == "ended"


def test_what_is_owed_is_sent_before_the_end(tmp_path: Path, stalling: Image) -> None:
    """The call is open when the signal comes, its pages are owed: all of them arrive, and OK at the end."""
    with (
        start(tmp_path, {"vm": stalling}, ready=True) as running,
        grpc.insecure_channel(running.ready["data"]) as data,
        grpc.insecure_channel(running.ready["control"]) as control,
    ):
        call = PageServiceStub(data).StreamPages(pb.StreamPagesRequest(image="vm", runs=[0, STALLING_PAGES]))
        pages = [page for page, _ in checked(next(call), stalling)]
        running.kick(signal.SIGTERM)
        running.wait_log('"draining"')
        assert check(control) == check(data) == HEALTH.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            PageServiceStub(data).GetPage(pb.GetPageRequest(image="vm", page=1))
        assert trailers_of(caught.value)["pageferry-reason"] == "GOING_AWAY"
        assert running.running
        pages += [page for batch in call for page, _ in checked(batch, stalling)]
        assert pages == list(range(STALLING_PAGES))
        assert running.wait() == 0
        assert "drain_cut" not in running.log


@pytest.mark.parametrize("second", [True, False], ids=["a second signal", "a timeout"])
def test_a_call_that_does_not_end_is_cut_off(tmp_path: Path, stalling: Image, second: bool) -> None:
    timeout = ("--drain-timeout", "600" if second else "0.2")
    with (
        start(tmp_path, {"vm": stalling}, *timeout, ready=True) as running,
        grpc.insecure_channel(running.ready["data"]) as channel,
    ):
        request = pb.StreamPagesRequest(image="vm", runs=[0, STALLING_PAGES])
        call = PageServiceStub(channel).StreamPages(request)
        next(call)
        running.kick(signal.SIGTERM)
        running.wait_log('"draining"')
        if second:
            assert running.running
            running.kick(signal.SIGTERM)
        assert running.wait() == 0
        assert one(log_entries(running), "drain_cut")["level"] == "warning"
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_control_port_tells_who_watches_health(tmp_path: Path, images: dict[str, Image]) -> None:
    with (
        start(tmp_path, images, ready=True) as running,
        grpc.insecure_channel(running.ready["control"]) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == HEALTH.SERVING
        running.kick(signal.SIGTERM)
        assert next(watched).status == HEALTH.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(watched)
        assert trailers_of(caught.value)["pageferry-reason"] == "GOING_AWAY"
        assert running.wait() == 0


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("port", [*PORTS, "metrics"])
def test_a_second_server_on_a_port_that_is_taken(
    server: Process, images: dict[str, Image], port: str
) -> None:
    taken = server.ready[port]
    arguments = {f"--{one}-listen": "127.0.0.1:0" for one in PORTS} | {f"--{port}-listen": taken}
    listen = [f"{option}={address}" for option, address in arguments.items()]
    ended = finished("pageserver", "serve", *image_options(images), *listen)
    assert ended.status == 69
    entry = json.loads(ended.log)
    assert f"cannot listen on {taken}" in entry["text"]
    assert "in use" in entry["text"]
    assert entry["remedy"]
    with grpc.insecure_channel(server.ready["control"]) as channel:
        assert check(channel) == HEALTH.SERVING


Bad = Callable[[Path, Image], list[object]]


def folder_option(option: str) -> Bad:
    return lambda folder, image: [f"--image=a={image.path}", f"{option}={folder}/none/there"]


def file_of(bytes_: int) -> Bad:
    def make(folder: Path, image: Image) -> list[object]:
        with (folder / "file").open("wb") as file:
            file.truncate(bytes_)
        return [f"--image=a={folder}/file"]

    return make


# what is given, exit code, what the message says, what the remedy says
BAD_INPUT: dict[str, tuple[Bad, int, str, str]] = {
    "no such image": (lambda folder, image: [f"--image=a={folder}/none"], 65, "No such file", "RAM file"),
    "a folder": (lambda folder, image: [f"--image=a={folder}"], 65, "is a folder", "RAM file"),
    "half a page": (file_of(4096 + 2048), 65, "no multiple of 4096", "copied to its end"),
    "empty": (file_of(0), 65, "is empty", "RAM file"),
    "regions too short": (
        lambda folder, image: [f"--image=a={image.path}", "--regions=a=500,99"],
        65,
        "have 599 pages, its image has 600",
        "in image order",
    ),
    "the network": (
        lambda folder, image: [f"--image=a={image.path}", "--data-listen=0.0.0.0:0"],
        71,
        "other hosts",
        "--insecure-network",
    ),
    "another host's address": (
        lambda folder, image: [f"--image=a={image.path}", "--data-listen=192.0.2.1:0", "--insecure-network"],
        65,
        "cannot listen on 192.0.2.1:0",
        "of this host",
    ),
    "no folder for a socket": (
        lambda folder, image: [f"--image=a={image.path}", f"--data-listen=unix:{folder}/none/there"],
        65,
        "No such file",
        "folder",
    ),
    "no folder for the ready file": (folder_option("--ready-file"), 65, "cannot write", "folder"),
    "a descriptor that is not open": (
        lambda folder, image: [f"--image=a={image.path}", "--ready-fd=99"],
        65,
        "descriptor 99",
        "leave it open",
    ),
    "a name that cannot be": (
        lambda folder, image: [f"--image={'n' * 129}={image.path}"],
        64,
        "is no image's name",
        "1 to 128 bytes",
    ),
    "regions of nobody": (
        lambda folder, image: [f"--image=a={image.path}", "--regions=b=600"],
        64,
        "--regions names 'b'",
        "--image b=PATH",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_words(case: str, tmp_path: Path, images: dict[str, Image]) -> None:
    arguments, status, says, remedy = BAD_INPUT[case]
    given = ["--data-listen=127.0.0.1:0", "--control-listen=127.0.0.1:0", *arguments(tmp_path, images["a"])]
    ended = finished("pageserver", "serve", *given)
    assert ended.status == status, ended.log
    assert ended.output == ""
    assert "Traceback" not in ended.log
    if status == 64:
        assert says in ended.log
        assert remedy in ended.log
    else:
        entry = json.loads(ended.log.splitlines()[-1])
        assert says in entry["text"]
        assert remedy in entry["remedy"]


def test_a_live_unix_socket_is_not_taken_over(tmp_path: Path, images: dict[str, Image]) -> None:
    path = tmp_path / "socket"
    with listening(Address(path=path)) as live:
        for port in PORTS:
            arguments = {f"--{one}-listen": "127.0.0.1:0" for one in PORTS} | {
                f"--{port}-listen": f"unix:{path}"
            }
            listen = [f"{option}={address}" for option, address in arguments.items()]
            assert finished("pageserver", "serve", *image_options(images), *listen).status == 69
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            live.accept()[0].close()


# ---------------------------------------------------------------------------------------------------- inspect


def test_inspect(images: dict[str, Image]) -> None:
    image = images["a"]
    ended = finished("pageserver", "inspect", "--json", image.path)
    assert (ended.status, ended.log) == (0, "")
    facts = json.loads(ended.output)
    assert facts.pop("disk_bytes") == image.path.stat().st_blocks * 512
    assert facts == {
        "path": str(image.path),
        "content_id": f"{image.content_id:016x}",
        "pages": 600,
        "data_pages": len(image.pages),
        "zero_pages": 600 - len(image.pages),
        "bytes": 600 * 4096,
        "regions": 1,
        "poisoned_pages": 0,
        "unreadable_pages": 0,
    }
    table = finished("pageserver", "inspect", image.path).output
    for name, value in facts.items():
        assert f"{name.replace('_', ' '):16}  {value}\n" in table


def test_a_copy_without_its_holes_has_the_same_content_id(tmp_path: Path, images: dict[str, Image]) -> None:
    original = images["a"].path
    (tmp_path / "copy").write_bytes(original.read_bytes())
    (tmp_path / "other").write_bytes(page_bytes(0) + original.read_bytes()[4096:-1] + b"\1")
    outputs = [
        json.loads(finished("pageserver", "inspect", "--json", path).output)
        for path in (original, tmp_path / "copy", tmp_path / "other")
    ]
    assert outputs[0]["content_id"] == outputs[1]["content_id"] != outputs[2]["content_id"]
    assert outputs[0]["disk_bytes"] < outputs[1]["disk_bytes"]


@pytest.mark.parametrize(
    ("path", "says"),
    [("/nowhere/ram", "No such file"), ("/", "is a folder"), ("/dev/zero", "no regular file")],
)
def test_inspect_what_is_no_image(path: str, says: str) -> None:
    ended = finished("pageserver", "inspect", path)
    assert (ended.status, ended.output) == (65, "")
    assert ended.log.startswith("Error: ")
    assert says in ended.log
    assert "RAM file" in ended.log
