import pytest

from pidone.http.urls import (
    authority,
    canonical,
    has_dot_segments,
    is_loopback,
    origin,
    segment,
    with_namespace,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("web", "web"),
        ("a b%", "a%20b%25"),
        ("\N{SNOWMAN}", "%E2%98%83"),
        ("...", "..."),
        (".hidden", ".hidden"),
        ("a..b", "a..b"),
        ("host:app:80", "host%3Aapp%3A80"),
        ("a;..", "a%3B.."),
    ],
)
def test_a_value_is_one_segment(value: str, written: str) -> None:
    assert segment(value) == written


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        ".",
        "..",
        " ..",
        "..;a",
        "%2e%2E",
        ".%2e",
        "a/b",
        "a\\b",
        "%2F",
        "%5c",
        "a\0",
        "a\n",
        "%0a",
        "\ud800",
    ],
)
def test_what_could_be_another_path_is_none(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        segment(value)


@pytest.mark.parametrize(
    "path", ["/a/../b", "/..", "./a", "/a/%2e%2e/b", "/a/.%2E", "/a\\..\\b", "/a/..;x/b", "/a%2f..%2fb"]
)
def test_dot_segments_are_seen(path: str) -> None:
    assert has_dot_segments(path)


@pytest.mark.parametrize("path", ["", "/", "/a.b/..c/...", "/eureka//apps"])
def test_dots_in_names_are_none(path: str) -> None:
    assert not has_dot_segments(path)


@pytest.mark.parametrize(
    "url",
    [
        "http://eureka/eureka/",
        "HTTP://EUREKA/eureka",
        "http://eureka.:80//eureka//",
        "http://me:s3cret@eureka/eureka",
        "http://eureka/%65ureka?x#y",
    ],
)
def test_one_server_has_one_spelling(url: str) -> None:
    assert canonical(url) == "http://eureka:80/eureka/"


def test_what_is_another_server_stays_another() -> None:
    urls = [
        "http://eureka/eureka",
        "https://eureka/eureka",
        "http://eureka:8761/eureka",
        "http://eureka.infra/eureka",
        "http://eureka/Eureka",
        "http://eureka/",
        "http://[fd00::1]/eureka",
    ]
    assert len(set(map(canonical, urls))) == len(urls)
    assert canonical("http://[FD00:0::1]:80/") == canonical("http://[fd00::1]") == "http://[fd00::1]:80/"


@pytest.mark.parametrize(
    "url",
    [
        "http://eureka/",
        "http://Eureka.shop/",
        "http://eureka.shop.svc:80",
        "http://eureka.shop.svc.cluster.local./",
        "http://eureka.shop.svc.example.org/",
    ],
)
def test_a_service_has_one_spelling_in_a_namespace(url: str) -> None:
    assert canonical(url, "shop") == "http://eureka.shop:80/"


@pytest.mark.parametrize(
    ("url", "outside"),
    [
        ("http://eureka:8761/eureka", "http://eureka.shop.svc:8761/eureka"),
        ("http://me:s3cret@Eureka/", "http://me:s3cret@eureka.shop.svc/"),
        ("zk:2181", "zk.shop.svc:2181"),
        ("zk", "zk.shop.svc"),
        ("zk:2181/chroot", "zk.shop.svc:2181/chroot"),
        *(
            (url, url)
            for url in (
                "http://eureka.infra/x",
                "http://localhost:1/",
                "http://10.0.0.1:8761/",
                "http://[fd00::1]/",
                "http://[::1",
                "zk.infra:2181",
                "10.0.0.1:2181",
                "[fd00::1]:2181",
            )
        ),
    ],
)
def test_a_short_name_gets_its_namespace_for_callers_outside(url: str, outside: str) -> None:
    assert with_namespace(url, "shop") == outside


@pytest.mark.parametrize(
    ("server", "loopback"),
    [
        *(
            (server, True)
            for server in (
                "http://127.0.0.1:8500",
                "http://me:s3cret@127.8.9.1/x",
                "https://LOCALHOST:2379",
                "http://a.localhost./",
                "http://127.1/",
                "http://2130706433/",
                "http://0/",
                "http://0.0.0.0/",
                "http://[::1]:8500/",
                "http://[::]/",
                "http://[::ffff:127.0.0.1]/",
                "localhost:2181",
                "127.0.0.1",
            )
        ),
        *(
            (server, False)
            for server in (
                "http://10.0.0.127:8500",
                "http://eureka/",
                "http://127.0.0.1.example/",
                "http://[fd00::1]/",
                "zk:2181",
                "http://[::1",
                "",
            )
        ),
    ],
)
def test_what_names_the_caller_itself(server: str, loopback: bool) -> None:
    assert is_loopback(server) is loopback


def test_host_and_port_are_written_in_one_way() -> None:
    assert authority("fd00::27", 80) == "[fd00::27]:80"
    assert authority("10.0.0.5", 80) == "10.0.0.5:80"
    assert authority("[fd00::27]", 80) == "[fd00::27]:80"
    assert authority("*", 9100) == "*:9100"


@pytest.mark.parametrize(
    "url", ["http://", "http://:80/", "http://a:99999/", "http://a:b/", "http://[::1", "/path", ""]
)
def test_what_has_no_origin_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        origin(url)
