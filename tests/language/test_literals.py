"""Literal values are held to what URLs, headers, hosts, paths and labels take."""

import pytest

from pidone.language import literals
from pidone.language.leftovers import leftovers

RIGHT = {
    "header": ["text/html", "a b", "", "$(params.x)", "v $(pod.name)"],
    "host": ["web", "web.shop.svc", "web.shop.svc.", "10.0.0.1", "::1", "fd00::1", "my_host", "$(pod.ip)",
             "a-$(pod.name)"],
    "path": ["/", "/a/b?c=d&e=%20", "/.well-known/x", "/a..b", "/a/...", "/$(params.path)", "/%7Euser"],
    "segment": ["web", "web:8080", "a b", "...", ".x", "$(params.id)"],
    "url": ["http://a", "https://a:1/b", "http://[::1]:80/", "http://$(params.host):8080/x", "http://a:$(params.port)/",
            "$(params.url)/x", "http://u:p@a/", "http://a/b;c"],
    "urls": ["http://a/eureka,http://b/eureka", "http://a/eureka, http://b/eureka", "$(params.url)"],
}  # fmt: skip
WRONG = {
    "header": [" a", "a\t", "café", "a\N{EM DASH}b"],
    "host": ["web:80", "http://web", "10.0.0.256", "10.0.0", "a..b", "-a", "a-", ".", "1.2.3.4.5", "fd00::1::2",
             "a" * 64],
    "path": ["/prüfung", "/a/../b", "/./", "/%2e%2E/x", "/a#b", "/a/..", "/..;x/b", "/$(params.x)/../b"],
    "segment": [".", "..", "%2e", "a/b", "a\\b", " "],
    "url": ["http://a:65536/", "http://a:0/", "http://a:b/", "http://a,http://b", "http://a;http://b", "http://[x]/",
            "http://a/../b", "http://a/ü", "http://-a/", "http://a..b/", "http://:80/", "http://höst/",
            "http://10.0.0.999/", "http://$(params.host):99999/"],
    "urls": ["http://a;http://b", "http://a,b", "http://a,", "http://a,http://b:99999"],
}  # fmt: skip


@pytest.mark.parametrize(("holds", "text"), [(holds, text) for holds in RIGHT for text in RIGHT[holds]])
def test_what_the_protocol_takes_is_right(holds: str, text: str) -> None:
    assert literals.problem(holds, text) == ""


@pytest.mark.parametrize(("holds", "text"), [(holds, text) for holds in WRONG for text in WRONG[holds]])
def test_what_the_protocol_does_not_take_is_wrong(holds: str, text: str) -> None:
    assert literals.problem(holds, text) != ""


@pytest.mark.parametrize("key", ["app", "pidone.dev/x", "a.b-c/D_e.f", "a" * 63, "0/1"])
def test_keys_of_labels_that_kubernetes_takes(key: str) -> None:
    assert literals.label_key(key) == ""


@pytest.mark.parametrize(
    "key", ["", "a b", "a/b/c", "/a", "a/", "A/b", "-a", "a-", "a" * 64, "a_b/c", f"{'a' * 254}/b"]
)
def test_keys_of_labels_that_kubernetes_refuses(key: str) -> None:
    assert literals.label_key(key) != ""


@pytest.mark.parametrize("name", ["", "X Team", "X:", "Äpfel", "Host", "content-length"])
def test_names_of_headers_that_cannot_be_sent(name: str) -> None:
    assert literals.header_name(name) != ""


@pytest.mark.parametrize(
    "text",
    ["${APP}", "$HOST", "a-$1", "%X_Y%", "<zone>", "<your zone>", "${{ x }}", "{{ .Values.x }}", "{% if x %}", "#{x}#",
     "${params.x}", "CHANGEME", "change-me", "TODO", "@x.y@", "__NAME__", "your-app", "http://$HOST:1/", "a/{{x}}/b"],
)  # fmt: skip
def test_placeholders_of_other_tools(text: str) -> None:
    assert [rule for _, _, rule in leftovers(text)] == ["placeholder"]


@pytest.mark.parametrize(
    "text",
    ["", "web", "$(params.x)", "$$(x)", "a$", "100%", "5% of 10%", "%C3%BC%20x", "a<b", "a < b > c", "{a}", "todo",
     "a@b.c", "x_y__z", "^[a-z]+$", "user@host", "http://u@a/", "http://$(a):$(b)@c/", "café", "/a/{id}"],
)  # fmt: skip
def test_texts_that_are_meant(text: str) -> None:
    assert list(leftovers(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "\u201cweb\u201d",
        "\u2018web\u2019",
        "\u00abweb\u00bb",
        "web\N{NO-BREAK SPACE}",
        "a\N{FULLWIDTH COMMA}b",
        "a\N{EN DASH}b",
        "we\N{SOFT HYPHEN}b",
        "\N{ZERO WIDTH SPACE}web",
    ],
)
def test_characters_that_look_like_others(text: str) -> None:
    assert [rule for _, _, rule in leftovers(text)] == ["typography"]


@pytest.mark.parametrize(
    ("text", "named"),
    [("http://u:s3cret@a/", ""), ("Bearer 01", "Authorization"), ("x", "X-Api-Key"), ("x", "DB_PASSWORD")],
)
def test_secrets(text: str, named: str) -> None:
    assert [rule for _, _, rule in leftovers(text, named=named)] == ["secret"]


@pytest.mark.parametrize(
    ("text", "named"), [("/run/secret", "TOKEN_FILE"), ("/run/x", "TOKEN"), ("$(params.x)", "Cookie")]
)
def test_names_of_files_and_references_are_no_secrets(text: str, named: str) -> None:
    assert list(leftovers(text, named=named)) == []


@pytest.mark.parametrize(
    "text", ["{{" * 500_000, "<a" * 500_000, "${" * 500_000, "%a" * 500_000, "a://" * 250_000]
)
def test_a_long_text_is_looked_at_in_part(text: str) -> None:
    """The controller checks what everybody may write; these would take minutes without a bound."""
    assert list(leftovers(text)) == []
