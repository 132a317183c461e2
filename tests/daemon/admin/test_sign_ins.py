"""Sign-ins are bounded in number and time, however often somebody signs in."""

from bentpipe.daemon.admin.viewer import AGE_S, ATTEMPTS, ATTEMPTS_S, IDLE_S, SIGN_INS, SIGN_INS_OF_ONE, SignIns


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_sign_in_is_found_by_its_cookie_alone() -> None:
    sign_ins = SignIns()
    value = sign_ins.open("bp_a", "ci")
    found = sign_ins.find(value)
    assert found is not None
    assert (found.token, found.name) == ("bp_a", "ci")
    assert sign_ins.find("") is None
    assert sign_ins.find(value + "x") is None
    sign_ins.close(value)
    assert sign_ins.find(value) is None


def test_each_has_a_cookie_and_a_secret_of_its_own() -> None:
    sign_ins = SignIns()
    values = [sign_ins.open("bp_a", f"p{number}") for number in range(20)]
    found = [sign_ins.find(value) for value in values]
    assert len(set(values)) == len({each.secret for each in found if each is not None}) == 20
    assert all(len(value) >= 43 for value in values)


def test_one_that_is_not_used_ends() -> None:
    sign_ins = SignIns(clock := Clock())
    value = sign_ins.open("bp_a", "ci")
    clock.now += IDLE_S - 1
    assert sign_ins.find(value) is not None
    clock.now += IDLE_S - 1
    assert sign_ins.find(value) is not None
    clock.now += IDLE_S
    assert sign_ins.find(value) is None
    assert len(sign_ins) == 0


def test_none_lasts_longer_than_a_working_day() -> None:
    sign_ins = SignIns(clock := Clock())
    value = sign_ins.open("bp_a", "ci")
    began = clock.now
    while clock.now + IDLE_S / 2 < began + AGE_S:
        clock.now += IDLE_S / 2
        assert sign_ins.find(value) is not None
    clock.now = began + AGE_S
    assert sign_ins.find(value) is None


def test_the_oldest_of_a_principal_gives_way() -> None:
    sign_ins = SignIns()
    other = sign_ins.open("bp_b", "other")
    values = [sign_ins.open("bp_a", "ci") for _ in range(SIGN_INS_OF_ONE + 2)]
    assert [sign_ins.find(value) is not None for value in values] == [False, False] + [True] * SIGN_INS_OF_ONE
    assert sign_ins.find(other) is not None


def test_the_oldest_of_all_gives_way() -> None:
    sign_ins = SignIns()
    first = sign_ins.open("bp_a", "p")
    for number in range(SIGN_INS):
        sign_ins.open("bp_a", f"p{number}")
    assert len(sign_ins) == SIGN_INS
    assert sign_ins.find(first) is None


def test_attempts_are_bounded() -> None:
    sign_ins = SignIns(clock := Clock())
    assert all(sign_ins.may_try() for _ in range(ATTEMPTS))
    assert not sign_ins.may_try()
    clock.now += ATTEMPTS_S
    assert sign_ins.may_try()
