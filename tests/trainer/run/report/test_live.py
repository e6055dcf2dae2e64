"""The page of runs at work: to this machine, as they are now, nothing written."""

import http.client
import threading

import pytest
from small_runs import answers_of, make_run

from dfpo.__main__ import main
from dfpo.config import ConfigError
from dfpo.run.kept import write
from dfpo.run.report.live import LiveServer


@pytest.fixture
def server(tmp_path):
    with LiveServer([make_run(tmp_path / "run", kept={})], 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_page_is_of_now_and_nothing_is_written(server, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    status, page = ask(server)
    assert status == 200 and '"answers":[]' in page and '"live":10' in page
    assert sorted(tmp_path.rglob("*")) == before
    write(tmp_path / "run", 0, answers_of(0))
    assert "it is 4" in ask(server)[1]


def test_nothing_else_is_served_and_to_nobody_else(server):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/config.yaml")[0] == ask(server, "/../run/config.yaml")[0] == 404
    # A page elsewhere whose name was made to lead here.
    assert ask(server, host="evil.example")[0] == 421
    assert ask(server, host=f"localhost:{server.server_port}")[0] == 200


def test_wrong_input_is_one_line(server, tmp_path, capsys):
    with pytest.raises(ConfigError, match="port: is .*, must be a free one"):
        LiveServer([tmp_path / "run"], server.server_port)
    assert main(["report", str(tmp_path / "no"), "--live"]) == 2
    assert main(["report", str(tmp_path / "run"), "--live", "-o", "x.html"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
