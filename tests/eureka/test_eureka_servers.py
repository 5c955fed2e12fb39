"""What pidone relies on in an Eureka server, asked of the real one and of the fake."""

import json

import pytest

from tests.eureka.conftest import App, FakeServer, Server

DEFAULT_DATA_CENTER = "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo"


class TestRegistration:
    @pytest.mark.check("eureka", "POST 204")
    def test_a_document_is_read_back_as_it_was_sent(self, app: App) -> None:
        sent = app.document()
        assert app.post(sent).status == 204
        got = app.read()
        chosen_by_server = {"overriddenstatus", "lastUpdatedTimestamp", "leaseInfo"}
        assert {key: got[key] for key in sent.keys() - chosen_by_server} == {
            key: value for key, value in sent.items() if key not in chosen_by_server
        }
        assert got["overriddenStatus"] == "UNKNOWN"
        assert got["leaseInfo"].items() >= sent["leaseInfo"].items()

    def test_it_is_seen_by_id_by_app_by_vip_and_in_the_whole_list(self, app: App) -> None:
        app.register()
        call = app.server.call
        by_id = call("GET", f"instances/{app.instance_id}").json["instance"]
        by_app = call("GET", f"apps/{app.name}").json["application"]
        by_vip = call("GET", f"vips/{app.name.lower()}").json["applications"]["application"]
        all_apps = call("GET", "apps").json["applications"]["application"]
        assert by_id["instanceId"] == app.instance_id
        assert by_app["name"] == app.name
        assert by_app == by_vip[0]
        assert by_app in all_apps

    def test_unknown_names_are_not_found_but_an_unknown_vip_is_an_empty_list(self, app: App) -> None:
        call = app.server.call
        for path in (f"apps/{app.name}", f"apps/{app.name}/x", "instances/x", "nonsense"):
            assert call("GET", path).status == 404, path
        assert call("GET", "vips/nobody").json["applications"]["application"] == []

    def test_the_app_is_compared_without_case_and_kept_in_upper_case(self, app: App) -> None:
        lower = app.name.lower()
        body = json.dumps({"instance": app.document(app=lower)}).encode()
        assert app.server.call("POST", f"apps/{lower}", body).status == 204
        assert app.read()["app"] == app.name
        assert app.server.call("PUT", f"apps/{lower}/{app.instance_id}").status == 200

    def test_ids_and_vips_are_compared_with_case(self, app: App) -> None:
        app.register()
        assert app.server.call("GET", f"apps/{app.name}/{app.instance_id.upper()}").status == 404
        assert app.server.call("GET", f"vips/{app.name}").json["applications"]["application"] == []

    def test_without_an_instance_id_the_host_name_is_the_id(self, app: App) -> None:
        app.register(instanceId=None, hostName=f"host-{app.name}")
        assert app.read(f"host-{app.name}")["hostName"] == f"host-{app.name}"

    @pytest.mark.parametrize(("name", "encoded"), [("a b", "a%20b"), ("ü", "%C3%BC"), ("a+b", "a+b")])
    def test_an_id_is_percent_decoded(self, app: App, name: str, encoded: str) -> None:
        app.register(instanceId=f"{app.name}:{name}")
        assert app.read(f"{app.name}:{encoded}")["instanceId"] == f"{app.name}:{name}"

    def test_an_id_with_a_slash_is_accepted_and_then_out_of_reach(self, app: App) -> None:
        app.register(instanceId=f"{app.name}/1")
        assert app.server.call("PUT", f"apps/{app.name}/{app.name}%2F1").status == 400

    def test_leaving_is_200_then_404(self, app: App) -> None:
        app.register()
        assert app.leave() == 200
        assert app.leave() == 404
        assert app.heartbeat() == 404
        assert app.server.call("GET", f"apps/{app.name}").status == 404

    def test_metadata_can_be_added(self, app: App) -> None:
        app.register()
        assert app.call("PUT", "/metadata?zone=a") == 200
        assert app.read()["metadata"] == {"management.port": "9080", "zone": "a"}

    def test_a_wrong_method_is_405(self, server: Server) -> None:
        assert server.call("PUT", "apps").status == 405
        assert server.call("DELETE", "apps/NOBODY").status == 405


@pytest.mark.check("eureka", "the 400 list")
class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"hostName": None}, "Missing hostname"),
            ({"hostName": ""}, "Missing hostname"),
            ({"instanceId": None, "hostName": None}, "Missing instanceId"),
            ({"ipAddr": None}, "Missing ip address"),
            ({"app": ""}, "Missing appName"),
            ({"dataCenterInfo": None}, "Missing dataCenterInfo"),
            ({"dataCenterInfo": {"@class": DEFAULT_DATA_CENTER}}, "Missing dataCenterInfo Name"),
        ],
    )
    def test_what_is_missing_is_named(self, app: App, changes: dict[str, object], reason: str) -> None:
        answer = app.post(app.document(**changes))
        assert (answer.status, answer.text) == (400, reason)

    def test_an_app_other_than_in_the_path_is_named(self, app: App) -> None:
        answer = app.post(app.document(app="other"))
        assert (answer.status, answer.text) == (
            400,
            f"Mismatched appName, expecting {app.name} but was OTHER",
        )

    @pytest.mark.parametrize(
        "changes",
        [
            {"app": None},
            {"dataCenterInfo": {"name": "MyOwn"}},
            {"dataCenterInfo": {"@class": "other", "name": "MyOwn"}},
            {"dataCenterInfo": {"@class": DEFAULT_DATA_CENTER, "name": "Theirs"}},
            {"port": 9080},
            {"port": "9080"},
            {"metadata": {"a": {"b": "c"}}},
        ],
    )
    def test_what_the_parser_cannot_read_is_not_named(self, app: App, changes: dict[str, object]) -> None:
        answer = app.post(app.document(**changes))
        assert (answer.status, answer.text) == (400, '{"error": "cannot parse request body"}')

    @pytest.mark.parametrize("body", [b"{nonsense", b"{}", b"[]", b'{"instance": null}', b'{"app": "A"}'])
    def test_what_is_no_instance_is_refused(self, app: App, body: bytes) -> None:
        answer = app.server.call("POST", f"apps/{app.name}", body)
        assert (answer.status, answer.text) == (400, '{"error": "cannot parse request body"}')


class TestForms:
    @pytest.mark.parametrize(
        ("port", "kept"),
        [
            ({"$": 9081, "@enabled": "true"}, {"$": 9081, "@enabled": "true"}),
            ({"$": "9081", "@enabled": True}, {"$": 9081, "@enabled": "true"}),
            ({"$": 9081, "@enabled": False}, {"$": 9081, "@enabled": "false"}),
            ({"$": 9081}, {"$": 9081, "@enabled": "true"}),
            ({"@enabled": "true"}, {"$": 7001, "@enabled": "true"}),
            (None, {"$": 7001, "@enabled": "true"}),
        ],
    )
    def test_ports(self, app: App, port: object, kept: object) -> None:
        app.register(port=port)
        assert app.read()["port"] == kept

    def test_numbers_may_be_strings_and_strings_numbers(self, app: App) -> None:
        lease = {"renewalIntervalInSecs": "10", "durationInSecs": "20"}
        app.register(countryId="1", lastDirtyTimestamp=app.dirty, leaseInfo=lease, metadata={"weight": 1})
        got = app.read()
        assert got["countryId"] == 1
        assert got["lastDirtyTimestamp"] == str(app.dirty - 1)
        assert got["leaseInfo"]["durationInSecs"] == 20
        assert got["metadata"] == {"weight": "1"}

    @pytest.mark.parametrize("lease", [None, {}, {"durationInSecs": 0}])
    def test_a_lease_that_says_nothing_is_30_and_90(self, app: App, lease: object) -> None:
        app.register(leaseInfo=lease)
        kept = app.read()["leaseInfo"]
        assert (kept["renewalIntervalInSecs"], kept["durationInSecs"]) == (30, 90)

    def test_a_missing_dirty_timestamp_is_the_servers_clock(self, app: App) -> None:
        app.register(lastDirtyTimestamp=None)
        assert int(app.read()["lastDirtyTimestamp"]) > 1_600_000_000_000

    def test_unknown_fields_are_dropped(self, app: App) -> None:
        app.register(colour={"of": "no interest"})
        assert "colour" not in app.read()

    @pytest.mark.parametrize("status", ["up", "Nonsense"])
    def test_a_status_in_another_spelling_is_unknown_and_never_kept_alive(
        self, app: App, status: str
    ) -> None:
        app.register(status)
        assert app.status == "UNKNOWN"
        assert app.heartbeat() == 404


class TestDirtyTimestamp:
    @pytest.mark.check("eureka", "heartbeat before register 404")
    def test_a_heartbeat_before_registration_is_404(self, app: App) -> None:
        assert app.heartbeat() == 404

    @pytest.mark.check("eureka", "newer dirty → 404, older → 200")
    def test_heartbeats_by_version(self, app: App) -> None:
        app.register()
        assert app.heartbeat(app.dirty) == 200
        assert app.heartbeat(app.dirty - 1) == 200
        assert app.call("PUT") == 200
        assert app.heartbeat(app.dirty + 1) == 404

    def test_a_404_for_a_newer_version_changes_nothing(self, app: App) -> None:
        app.register()
        assert app.heartbeat(app.dirty + 1) == 404
        assert app.read()["lastDirtyTimestamp"] == str(app.dirty)
        assert app.heartbeat() == 200

    @pytest.mark.check("eureka", "older POST keeps the old document")
    def test_an_older_document_is_ignored_without_a_word(self, app: App) -> None:
        app.register()
        older = app.document(status="DOWN", hostName="other", lastDirtyTimestamp=str(app.dirty - 1))
        assert app.post(older).status == 204
        got = app.read()
        assert (got["status"], got["hostName"]) == ("UP", "10.42.0.18")
        assert got["lastDirtyTimestamp"] == str(app.dirty)

    def test_an_equally_old_document_is_taken(self, app: App) -> None:
        app.register()
        assert app.post(app.document(status="DOWN", hostName="other")).status == 204
        got = app.read()
        assert (got["status"], got["hostName"]) == ("DOWN", "other")

    def test_the_status_of_a_heartbeat_is_ignored(self, app: App) -> None:
        app.register()
        assert app.heartbeat(status="DOWN") == 200
        assert app.status == "UP"

    def test_a_version_that_is_no_number_is_500(self, app: App) -> None:
        app.register()
        assert app.call("PUT", "?lastDirtyTimestamp=yesterday") == 500


@pytest.mark.check("eureka", "the whole override table")
class TestStatus:
    @pytest.mark.parametrize(
        ("before", "posted", "after"),
        [
            ("UP", "DOWN", "DOWN"),
            ("UP", "STARTING", "STARTING"),
            ("UP", "UNKNOWN", "UNKNOWN"),
            ("UP", "OUT_OF_SERVICE", "UP"),
            ("DOWN", "UP", "UP"),
            ("DOWN", "OUT_OF_SERVICE", "OUT_OF_SERVICE"),
            ("STARTING", "UP", "UP"),
            ("STARTING", "OUT_OF_SERVICE", "OUT_OF_SERVICE"),
            ("UNKNOWN", "UP", "UP"),
            ("OUT_OF_SERVICE", "UP", "OUT_OF_SERVICE"),
            ("OUT_OF_SERVICE", "DOWN", "DOWN"),
        ],
    )
    def test_a_posted_status(self, app: App, before: str, posted: str, after: str) -> None:
        app.register(before)
        assert app.status == before
        app.register(posted)
        assert app.status == after

    def test_out_of_service_by_post_is_left_through_down(self, app: App) -> None:
        app.register("OUT_OF_SERVICE")
        app.register("DOWN")
        app.register("UP")
        assert app.status == "UP"

    def test_an_override_outlives_documents_and_heartbeats(self, app: App) -> None:
        app.register()
        assert app.override("OUT_OF_SERVICE") == 200
        assert (app.status, app.overridden) == ("OUT_OF_SERVICE", "OUT_OF_SERVICE")
        app.register("UP")
        assert app.heartbeat() == 200
        assert (app.status, app.overridden) == ("OUT_OF_SERVICE", "OUT_OF_SERVICE")

    def test_down_is_believed_under_an_override_and_up_returns_to_it(self, app: App) -> None:
        app.register()
        app.override("OUT_OF_SERVICE")
        app.register("DOWN")
        assert app.heartbeat() == 200
        assert (app.status, app.overridden) == ("DOWN", "OUT_OF_SERVICE")
        app.register("UP")
        assert app.status == "OUT_OF_SERVICE"

    @pytest.mark.parametrize("status", ["UP", "DOWN", "STARTING", "OUT_OF_SERVICE"])
    def test_an_override_to_the_present_status_is_not_recorded(self, app: App, status: str) -> None:
        app.register(status)
        assert app.override(status) == 200
        assert app.overridden == "UNKNOWN"

    def test_lifting_an_override_with_a_value_is_at_once(self, app: App) -> None:
        app.register()
        app.override("OUT_OF_SERVICE")
        assert app.lift_override("?value=UP") == 200
        assert (app.status, app.overridden) == ("UP", "UNKNOWN")
        assert app.heartbeat() == 200

    def test_lifting_an_override_without_a_value_asks_for_a_new_registration(self, app: App) -> None:
        app.register()
        app.override("OUT_OF_SERVICE")
        assert app.lift_override("") == 200
        assert app.status == "UNKNOWN"
        assert app.heartbeat() == 404
        app.register()
        assert (app.status, app.heartbeat()) == ("UP", 200)

    def test_lifting_what_is_not_overridden_changes_nothing(self, app: App) -> None:
        app.register()
        assert app.lift_override("?value=DOWN") == 200
        assert app.status == "UP"

    def test_an_override_is_forgotten_with_the_instance(self, app: App) -> None:
        app.register()
        app.override("OUT_OF_SERVICE")
        assert app.leave() == 200
        app.register()
        assert (app.status, app.overridden) == ("UP", "UNKNOWN")

    def test_a_document_can_bring_its_own_override(self, app: App) -> None:
        app.register(overriddenstatus="OUT_OF_SERVICE")
        assert (app.status, app.overridden) == ("OUT_OF_SERVICE", "OUT_OF_SERVICE")

    def test_an_override_may_raise_the_version_but_not_lower_it(self, app: App) -> None:
        app.register()
        assert app.call("PUT", f"/status?value=OUT_OF_SERVICE&lastDirtyTimestamp={app.dirty + 5}") == 200
        assert app.call("PUT", f"/status?value=DOWN&lastDirtyTimestamp={app.dirty}") == 200
        assert app.read()["lastDirtyTimestamp"] == str(app.dirty + 5)

    def test_overrides_of_the_unknown_are_404_and_unknown_words_500(self, app: App) -> None:
        assert (app.override("UP"), app.lift_override()) == (404, 404)
        app.register()
        assert (app.override("Nonsense"), app.override(""), app.lift_override("?value=up")) == (500, 500, 500)
        assert app.status == "UP"


class TestLease:
    @pytest.mark.check("eureka", "lease x2 expiry")
    def test_a_renewed_lease_lasts_twice_as_long_as_it_says(self, app: App) -> None:
        lease = {"renewalIntervalInSecs": 1, "durationInSecs": 1}
        app.register(instanceId=f"{app.name}:silent", leaseInfo=lease)
        app.register(leaseInfo=lease)
        assert app.heartbeat() == 200
        passed = 0.0
        gone: dict[str, float] = {}
        while len(gone) < 2:
            assert passed < 10, f"still there: only {gone} went"
            app.server.pass_time(0.1)
            passed += 0.1
            listed = app.server.call("GET", f"apps/{app.name}")
            for instance_id in (f"{app.name}:silent", app.instance_id):
                if instance_id not in listed.text:
                    gone.setdefault(instance_id, passed)
        assert gone[app.instance_id] - gone[f"{app.name}:silent"] >= 0.5
        assert app.heartbeat() == 404


class TestFakeOnly:
    def test_the_log_has_every_request_with_its_answer(self) -> None:
        server = FakeServer()
        app = App(server, "RATINGS")
        app.heartbeat()
        server.pass_time(1)
        app.register()
        assert [(entry.method, entry.status, entry.now) for entry in server.registry.log] == [
            ("PUT", 404, server.now - 1),
            ("POST", 204, server.now),
        ]
        assert server.registry.log[0].target.startswith("/eureka/apps/RATINGS/")
        assert b'"instance"' in server.registry.log[1].body

    def test_clear_forgets_instances_and_overrides_but_not_the_log(self) -> None:
        server = FakeServer()
        app = App(server, "RATINGS")
        app.register()
        app.override("OUT_OF_SERVICE")
        server.registry.clear()
        assert app.heartbeat() == 404
        app.register()
        assert app.status == "UP"
        assert len(server.registry.log) == 5

    def test_lease_ends_are_exact(self) -> None:
        server = FakeServer()
        app = App(server, "RATINGS")
        app.register()
        server.pass_time(90)
        assert app.status == "UP"
        assert app.heartbeat() == 200
        server.pass_time(180)
        assert app.status == "UP"
        server.pass_time(0.001)
        assert app.heartbeat() == 404
