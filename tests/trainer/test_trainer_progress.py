from types import SimpleNamespace

import pytest

from trainer import train


@pytest.mark.parametrize("first", [True, False])
def test_elsewhere_than_on_a_terminal_the_first_process_says_a_line_now_and_then(
    first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    shown = train.Progress(SimpleNamespace(name="low-temperature", kind="sft"), None, says=True)
    log = [{"loss": 0.5}, {"loss": 0.25}, {"eval_loss": 0.75}]
    state = SimpleNamespace(is_world_process_zero=first, global_step=0, max_steps=1200, log_history=log)
    control = SimpleNamespace(should_save=False, should_log=False)
    for second in range(1, 64):
        clock[0], state.global_step = float(second), second * 10
        shown.on_step_end(None, state, control)
    assert not control.should_log
    said = [f"stage low-temperature: {step} of 1,200 steps, loss 0.250" for step in (300, 600)]
    assert capsys.readouterr().err.splitlines() == (said if first else [])
