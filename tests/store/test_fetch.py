"""URLs of somebody else: none leads to a private address, and none takes more time or memory than it may."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import aiohttp.connector
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from store.config import StoreSettings
from store.errors import FetchError, FetchFailed, FetchRefused, FetchTooLarge, SettingError
from store.objects import fetch
from store.objects.addresses import is_public
from store.objects.allowed import is_allowed, is_trusted
from store.objects.fetch import Fetched, Fetcher

PICTURE = bytes(range(256)) * 1000


class Site:
    """A server with one handler, which may be replaced; it counts connections."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []
        self.connections = 0
        self.handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = self.picture

    async def start(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        """Listen on one address, or on every one of this machine when it is empty."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            self.requests.append(request)
            return await self.handler(request)

        server = web.Server(handle)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        made = self._runner.server
        assert made is not None

        def protocol() -> asyncio.Protocol:
            self.connections += 1
            return made()

        if host == "" and socket.has_dualstack_ipv6():
            listening = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listening = socket.create_server((host, 0))
        self._server = await asyncio.get_running_loop().create_server(protocol, sock=listening, ssl=tls)
        self.port: int = listening.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        self._server.close()
        await self._runner.cleanup()

    async def picture(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=PICTURE, content_type="image/png")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def fetcher(site: Site) -> AsyncIterator[Fetcher]:
    """One that trusts the site."""
    made = Fetcher(allow=[site.origin], max_bytes=1_000_000, timeout_s=20.0)
    yield made
    await made.close()


@pytest.fixture
async def public() -> AsyncIterator[Fetcher]:
    """One for URLs of users: any public host, over https."""
    made = Fetcher(allow=None, max_bytes=1_000_000, timeout_s=20.0)
    yield made
    await made.close()


def redirect(location: str, status: int = 302) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": location, "Set-Cookie": "a=b"})

    return handler


async def test_what_the_url_leads_to_is_fetched(site: Site, fetcher: Fetcher) -> None:
    """mission: 20"""
    found = await fetcher.fetch(f"{site.origin}/a.png?sig=a%2Fb%2Bc%3D&x=1+2")

    assert found == Fetched(f"{site.origin}/a.png?sig=a%2Fb%2Bc%3D&x=1+2", "image/png", PICTURE)
    (request,) = site.requests
    assert request.raw_path == "/a.png?sig=a%2Fb%2Bc%3D&x=1+2"
    assert request.headers["Accept-Encoding"] == "identity"
    assert not {"Cookie", "Authorization", "Referer"} & set(request.headers)


# --- addresses --------------------------------------------------------------------------------------------------------

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
    *("192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.170", "192.0.2.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1"),
    *("2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "3fff::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1", "ff0e::1"),
    *("4000::1", "e000::1", "", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "8.8.8.8.8"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.254"]
PUBLIC += ["2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:4860::8888"]


@pytest.mark.parametrize("address", PRIVATE)
def test_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_address_that_is_public(address: str) -> None:
    assert is_public(address)


LITERALS = [
    *("127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7F.0.0.1"),
    *("0177.0.0.1", "0", "0.0.0.0", "0x0", "00.0.0.0", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    *("localhost", "LOCALHOST", "localhost.", "127.0.0.1%00.example.org", "１２７.0.0.1", "127。0。0。1", "①②⑦.⓪.⓪.①"),
    *("[::1%25lo]", "[fe80::1%lo]", "[::1", "::1", "127.0.0.1#.example.org", "example.org@127.0.0.1"),
]


@pytest.mark.parametrize("host", LITERALS)
async def test_no_notation_of_a_private_address_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, public: Fetcher, host: str
) -> None:
    """The server listens on every address of this machine, and the port is allowed: only the address can be refused."""
    server = Site()
    await server.start(host="")
    monkeypatch.setattr(fetch, "_PORT", server.port)

    with pytest.raises(FetchError):
        await public.fetch(f"https://{host}:{server.port}/")

    assert server.connections == 0
    await server.stop()


async def test_that_server_would_have_been_reached(monkeypatch: pytest.MonkeyPatch, public: Fetcher) -> None:
    """The test above can fail: without the guard the same URL connects."""
    server = Site()
    await server.start(host="")
    monkeypatch.setattr(fetch, "_PORT", server.port)
    monkeypatch.setattr(fetch, "is_public", lambda address: True)

    for host in ("127.0.0.1", "localhost", *(["[::1]"] if socket.has_dualstack_ipv6() else [])):
        with pytest.raises(FetchFailed, match=r"could not be fetched from: Client"):  # no TLS there
            await public.fetch(f"https://{host}:{server.port}/")

    assert server.connections >= 2 + socket.has_dualstack_ipv6()
    await server.stop()


class Names(AbstractResolver):
    """Answers from a list: one set of addresses for each question."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in self.answers.pop(0)
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
async def tls_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Site]:
    """cdn.example.org on every address of this machine, of which 127.0.0.2 counts as public; its port as 443."""
    server_tls, client_tls = certificates("cdn.example.org", tmp_path)
    made = Site()
    await made.start(host="0.0.0.0", tls=server_tls)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", client_tls)
    monkeypatch.setattr(fetch, "_PORT", made.port)
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.2" or is_public(address))
    yield made
    await made.stop()


def certificates(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with this name, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem + secret)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_public_host_is_fetched_from_over_tls(tls_site: Site) -> None:
    names = Names(["127.0.0.2"], ["127.0.0.2"], ["127.0.0.2"])
    for allow in (None, ["cdn.example.org"], ["*.example.org"]):
        fetcher = Fetcher(allow=allow, max_bytes=10**6, timeout_s=20.0, resolver=names)
        url = f"https://CDN.example.org:{tls_site.port}/a.png"

        assert (await fetcher.fetch(url)).data == PICTURE

        await fetcher.close()


async def test_certificate_must_be_of_the_host(tls_site: Site) -> None:
    fetcher = Fetcher(allow=None, max_bytes=10**6, timeout_s=20.0, resolver=Names(["127.0.0.2"]))

    with pytest.raises(FetchFailed, match=r"^other.example.org could not be fetched from: ClientConnectorCertificate"):
        await fetcher.fetch(f"https://other.example.org:{tls_site.port}/")

    assert tls_site.requests == []
    await fetcher.close()


async def test_name_that_stands_for_another_address_the_next_time_is_refused(tls_site: Site) -> None:
    """DNS rebinding: public when it is looked at, private when it is used."""
    names = Names(["127.0.0.2"], ["127.0.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.2"])
    fetcher = Fetcher(allow=["cdn.example.org"], max_bytes=10**6, timeout_s=20.0, resolver=names)
    url = f"https://cdn.example.org:{tls_site.port}/a.png"
    await fetcher.fetch(url)
    connections = tls_site.connections

    for _ in range(3):
        with pytest.raises(FetchRefused, match=r"^cdn.example.org has an address that is not public$"):
            await fetcher.fetch(url)

    assert tls_site.connections == connections
    assert names.answers == []
    await fetcher.close()


async def test_redirect_to_the_same_name_is_looked_at_anew(tls_site: Site) -> None:
    tls_site.handler = redirect("/again")
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    fetcher = Fetcher(allow=None, max_bytes=10**6, timeout_s=20.0, resolver=names)

    with pytest.raises(FetchRefused, match=r"^cdn.example.org has an address that is not public$"):
        await fetcher.fetch(f"https://cdn.example.org:{tls_site.port}/a.png")

    assert tls_site.connections == 1
    await fetcher.close()


async def test_private_address_behind_a_public_one_is_not_tried(tls_site: Site) -> None:
    """Nobody listens on the first address, and the second is refused."""
    names = Names(["127.0.0.2", "127.0.0.1"])
    await tls_site.stop()
    inside = Site()
    await inside.start(host="127.0.0.1")
    fetcher = Fetcher(allow=None, max_bytes=10**6, timeout_s=20.0, resolver=names)

    with pytest.raises(FetchRefused, match=r"has an address that is not public"):
        await fetcher.fetch(f"https://cdn.example.org:{tls_site.port}/")

    assert inside.connections == 0
    await inside.stop()
    await fetcher.close()


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "x",
            "/a.png",
            "//example.org/a.png",
            "file:///etc/passwd",
            "ftp://example.org/a",
            "gopher://example.org/",
        ),
        *(
            "data:image/png;base64,AAAA",
            "http://example.org/a.png",
            "http://example.org:443/",
            "https://example.org:22/",
        ),
        *(
            "https://example.org:8443/",
            "https://user@example.org/",
            "https://user:pw@example.org/",
            "https://:pw@example.org",
        ),
        *(
            "https://",
            "https:///a",
            "https://[/",
            "https://example.org:99999/",
            "https://example.org:x/",
            "HTTP://example.org",
        ),
        f"https://example.org/{'a' * 9000}",
    ],
)
async def test_url_of_another_kind_is_refused(public: Fetcher, url: str) -> None:
    with pytest.raises(FetchRefused) as caught:
        await public.fetch(url)

    assert "pw" not in str(caught.value).replace("password", "")


async def test_host_that_is_not_named_is_refused() -> None:
    fetcher = Fetcher(allow=["cdn.example.org", "*.files.example.org"], max_bytes=10, timeout_s=20.0, resolver=Names())

    for host in (
        "example.org",
        "evil-cdn.example.org",
        "cdn.example.org.evil.org",
        "files.example.org",
        "xfiles.example.org",
    ):
        with pytest.raises(FetchRefused, match=rf"^{host} is not in PERUSE_FETCH_ALLOW$"):
            await fetcher.fetch(f"https://{host}/secret?token=1")
    await fetcher.close()


def test_allow_list_is_matched_by_whole_labels() -> None:
    allow = ["a.example.org", "*.b.example.org", "http://10.0.0.5:8188"]

    for host in ("a.example.org", "x.b.example.org", "y.x.b.example.org"):
        assert is_allowed(host, allow), host
    for host in ("x.a.example.org", "b.example.org", "xb.example.org", "b.example.org.evil.org", "10.0.0.5", ""):
        assert not is_allowed(host, allow), host
    assert is_trusted("http://10.0.0.5:8188", allow)
    assert not any(is_trusted(o, allow) for o in ("https://10.0.0.5:8188", "http://10.0.0.5:80", "a.example.org"))


async def test_user_given_urls_trust_nothing(site: Site, public: Fetcher) -> None:
    with pytest.raises(FetchRefused):
        await public.fetch(f"{site.origin}/")

    assert site.connections == 0


@pytest.mark.parametrize(
    "value",
    [
        "localhost",
        "*",
        "*.org.",
        "10.0.0.5",
        "http://10.0.0.5",
        "https://cdn.example.org/",
        "*.*.org",
        "a b.org",
        "http://x:1/y",
    ],
)
def test_allow_list_of_another_form_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """mission: 66"""
    monkeypatch.setenv("PERUSE_FETCH_ALLOW", f"cdn.example.org, {value}")

    with pytest.raises(SettingError, match=r"PERUSE_FETCH_ALLOW: .* is neither a host .* nor an origin with its port"):
        StoreSettings.load()


def test_allow_list_is_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERUSE_FETCH_ALLOW", "cdn.example.org, *.r2.dev,http://[fd00::5]:8188 , http://127.0.0.1:80")

    allow = ("cdn.example.org", "*.r2.dev", "http://[fd00::5]:8188", "http://127.0.0.1:80")
    assert StoreSettings.load().fetch_allow == allow


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_followed(site: Site, fetcher: Fetcher, status: int) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/a":
            return await redirect("../b?x=%2F", status)(request)
        return await site.picture(request)

    site.handler = handler

    found = await fetcher.fetch(f"{site.origin}/a")

    assert (found.url, found.data) == (f"{site.origin}/b?x=%2F", PICTURE)
    assert "Cookie" not in site.requests[1].headers


@pytest.mark.parametrize(
    "location",
    [
        *("https://127.0.0.1/", "https://169.254.169.254/latest/meta-data/", "https://[::1]/", "https://[fd00::1]/"),
        *(
            "http://169.254.169.254/",
            "http://127.0.0.1:1/",
            "file:///etc/passwd",
            "//127.0.0.1/",
            "https://x@127.0.0.1/",
        ),
        *("https://[::ffff:169.254.169.254]/", "https://localhost/", "gopher://127.0.0.1:25/"),
    ],
)
async def test_redirect_to_a_private_address_is_refused(site: Site, location: str) -> None:
    site.handler = redirect(location)
    fetcher = Fetcher(allow=[site.origin, "*.example.org"], max_bytes=10**6, timeout_s=20.0)

    with pytest.raises(FetchRefused):
        await fetcher.fetch(f"{site.origin}/a")

    assert site.connections == 1
    await fetcher.close()


async def test_redirects_end(site: Site, fetcher: Fetcher) -> None:
    site.handler = redirect("/again")

    with pytest.raises(FetchFailed, match=r"^127.0.0.1 redirects more than 3 times$"):
        await fetcher.fetch(f"{site.origin}/a")

    assert len(site.requests) == 4


# --- time and memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_length", [True, False])
async def test_too_many_bytes_are_not_read(site: Site, with_length: bool) -> None:
    sent = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if with_length:
            response.content_length = 10**10
        await response.prepare(request)
        while True:
            await response.write(bytes(65_536))
            sent += 65_536

    site.handler = handler
    fetcher = Fetcher(allow=[site.origin], max_bytes=1_000_000, timeout_s=20.0)

    with pytest.raises(FetchTooLarge, match=r"1000000"):
        await fetcher.fetch(f"{site.origin}/a")

    assert sent < 50_000_000  # what sockets hold, and not what there is
    await fetcher.close()


async def test_as_many_bytes_as_may_pass(site: Site) -> None:
    fetcher = Fetcher(allow=[site.origin], max_bytes=len(PICTURE), timeout_s=20.0)
    assert len((await fetcher.fetch(site.origin)).data) == len(PICTURE)
    await fetcher.close()

    fetcher = Fetcher(allow=[site.origin], max_bytes=len(PICTURE) - 1, timeout_s=20.0)
    with pytest.raises(FetchTooLarge):
        await fetcher.fetch(site.origin)
    await fetcher.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
async def test_packed_bytes_are_never_unpacked(site: Site, fetcher: Fetcher, encoding: str) -> None:
    """A bomb: 200 MB in 200 KB."""
    bomb = gzip.compress(bytes(200_000_000), 1) if encoding == "gzip" else b"x"

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": encoding})

    site.handler = handler

    with pytest.raises(FetchRefused, match=r"^127.0.0.1 sends packed bytes, which are not unpacked$"):
        await fetcher.fetch(f"{site.origin}/a")


@pytest.mark.parametrize("where", ["connect", "headers", "body", "redirects"])
async def test_slow_answer_is_given_up(site: Site, where: str) -> None:
    """A byte every 50 ms never looks idle: the limit is for the whole."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if where == "redirects":
            await asyncio.sleep(0.3)
            return await redirect("/again")(request)
        if where == "headers":
            await asyncio.sleep(60)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)

    site.handler = handler
    origin = site.origin
    full = socket.socket()
    if where == "connect":
        full.bind(("127.0.0.1", 0))  # does not listen fast: its queue is full
        full.listen(0)
        origin = f"http://127.0.0.1:{full.getsockname()[1]}"
    fetcher = Fetcher(allow=[origin], max_bytes=10**6, timeout_s=0.5)
    began = time.monotonic()

    with pytest.raises(FetchFailed, match=r"^127.0.0.1 did not send everything within 0.5 s$"):
        await fetcher.fetch(f"{origin}/secret?token=1")

    assert time.monotonic() - began < 10
    await fetcher.close()
    full.close()


async def test_answer_that_is_cut_short_is_an_error(site: Site, fetcher: Fetcher) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(bytes(500))
        assert request.transport is not None
        request.transport.close()
        return response

    site.handler = handler

    with pytest.raises(FetchFailed, match=r"^127.0.0.1 could not be fetched from: ClientPayloadError$"):
        await fetcher.fetch(f"{site.origin}/secret?token=1")


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 429, 500, 503])
async def test_only_200_is_an_answer(site: Site, fetcher: Fetcher, status: int) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status)

    site.handler = handler

    with pytest.raises(FetchFailed, match=rf"^127.0.0.1 answered {status}$"):
        await fetcher.fetch(f"{site.origin}/a")


async def test_host_that_is_not_there_is_an_error_without_the_url(site: Site) -> None:
    """A URL may be a secret. mission: 209"""
    await site.stop()
    fetcher = Fetcher(allow=[site.origin], max_bytes=10**6, timeout_s=20.0)

    with pytest.raises(FetchFailed, match=r"^127.0.0.1 could not be fetched from: ClientConnectorError$"):
        await fetcher.fetch(f"{site.origin}/secret?token=1")

    await fetcher.close()


async def test_fetches_at_once_are_bounded(site: Site) -> None:
    most = now = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return web.Response(body=b"x")

    site.handler = handler
    fetcher = Fetcher(allow=[site.origin], max_bytes=10**6, timeout_s=20.0, at_once=3)

    await asyncio.gather(*(fetcher.fetch(site.origin) for _ in range(12)))

    assert most == 3
    assert len(site.requests) == 12
    await fetcher.close()
