"""Generator, parser and checker agree, and every kind of mistake is caught."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_llm.demo.checker import check_steps, looks_like_demo, parse, split_solution
from ppl_llm.demo.corpus import corrupt
from ppl_llm.demo.problems import LEVELS, STEP_END, Operation, example, held_out, make_problem, split_of, write_answer, write_step

problems = st.builds(lambda level, seed: make_problem(level, random.Random(seed)), st.sampled_from(sorted(LEVELS)), st.integers(0, 10**6))


def relabelled(problem, position, step):
    steps = list(problem.steps)
    steps[position] = step
    return check_steps(problem, steps)


@given(problems)
def test_right_solution_checks_right(problem):
    assert check_steps(problem, problem.steps) == [True] * (LEVELS[problem.level].num_steps + 1)
    assert check_steps(problem.text, split_solution(problem.solution + "<|im_end|>")) == [True] * len(problem.steps)
    assert problem.steps[-1] == write_answer(problem.answer)


@given(problems)
def test_numbers_stay_in_the_range_of_the_level(problem):
    values = [problem.start]
    for operation in problem.operations:
        values.append(operation(values[-1]))
    assert all(0 <= value <= LEVELS[problem.level].max_value for value in values)


@given(problems)
def test_parse_round_trips(problem):
    assert parse(problem.text) == problem
    assert parse(f"  {problem.text}\n") == problem
    assert looks_like_demo(problem.text)


def test_same_state_gives_same_problem():
    assert make_problem(4, random.Random(7)) == make_problem(4, random.Random(7))
    assert make_problem(4, random.Random(7)) != make_problem(4, random.Random(8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is 2 + 2?",
        "Start with 12. What is the final number?",
        "Start with 12. First: add 5. What is the final number?",
        "Start with 12. First: add 5. Third: add 1. What is the final number?",
        "Start with 12. First: add 5. Second: halve it. What is the final number?",
        "Start with 12. First: add 5. Second: subtract 20. What is the final number?",
        "Start with 012. First: add 5. Second: add 1. What is the final number?",
        "Start with 12. First: add 5. Second: add 1. How old is the captain?",
        "Start with 12. First: add ٥. Second: add 1. What is the final number?",
        "Start with 12. First: add 5. Second: add 1. What is the final number? Why?",
    ],
)
def test_other_texts_do_not_look_like_demo(text):
    assert not looks_like_demo(text)
    with pytest.raises(ValueError, match="not a"):
        check_steps(text, [])


@pytest.mark.parametrize(("start", "accepted"), [(26, True), (37, True), (38, False), (41, False)])
def test_numbers_beyond_the_level_are_accepted_where_the_model_knows_them(start, accepted):
    """Two operations are level 1, whose own numbers end at 20; 38 + 3 = 41 is too large on the way."""
    text = f"Begin with {start}. First: increase it by 3. Second: take away 5. What number do you get?"
    assert looks_like_demo(text) == accepted
    if accepted:
        assert parse(text).answer == str(start - 2)


def test_sixteen_digit_numbers_and_many_steps_are_refused():
    assert not looks_like_demo("Start with 1234567890123456. First: add 5. Second: add 1. What is the final number?")
    assert not looks_like_demo("Start with 1. " + "First: add 1. " * 20 + "What is the final number?")


def test_unknown_level():
    with pytest.raises(ValueError, match="level must be one of"):
        make_problem(7, random.Random(0))


@given(problems, st.integers(0, 10**6))
def test_wrong_result_is_wrong_and_what_follows_from_it_is_right(problem, seed):
    rng = random.Random(seed)
    first = problem.operations[0]
    wrong = first(problem.start) + rng.choice([-1, 1]) * rng.randint(1, 9)
    steps, value = [write_step(0, problem.start, first, abs(wrong))], abs(wrong)
    if value == first(problem.start):
        return
    for position, operation in enumerate(problem.operations[1:], start=1):
        if operation(value) < 0:
            return
        steps.append(write_step(position, value, operation, operation(value)))
        value = operation(value)
    assert check_steps(problem, [*steps, write_answer(value)]) == [False] + [True] * len(problem.operations)


@given(problems, st.integers(0, 10**6))
def test_wrong_operation_or_operand_is_wrong_although_its_arithmetic_holds(problem, seed):
    rng = random.Random(seed)
    position = rng.randrange(len(problem.operations))
    operation = problem.operations[position]
    left = int(problem.steps[position].split(": ")[1].split()[0])
    for other in (
        Operation("*" if operation.symbol == "+" else "+", operation.operand),
        Operation(operation.symbol, operation.operand + 1),
    ):
        if other(left) >= 0:
            assert not relabelled(problem, position, write_step(position, left, other, other(left)))[position]


@given(problems)
def test_number_copied_from_elsewhere_is_wrong(problem):
    operation = problem.operations[1]
    left = operation.operand + operation(problem.start) + 1000  # certainly not what the first step states
    assert not relabelled(problem, 1, write_step(1, left, operation, operation(left)))[1]
    assert not relabelled(problem, -1, write_answer(int(problem.answer) + 1))[-1]


@pytest.mark.parametrize(
    "malformed", ["", "First 12 + 5 = 17", "First: 12 + 5 = 17.", "First: 12 + 5 = 017", "First: 12+5=17", " First: 12 + 5 = 17", "½"]
)
def test_malformed_step_is_wrong_and_states_nothing(malformed):
    problem = parse("Start with 12. First: add 5. Second: subtract 9. What is the final number?")
    assert check_steps(problem, ["First: 12 + 5 = 17\n\n", "Second: 17 - 9 = 8"]) == [True, True]
    assert check_steps(problem, [malformed, "Second: 17 - 9 = 8", write_answer(8)]) == [False, False, True]


def test_wrong_ordinal_is_wrong_but_states_its_result():
    problem = parse("Start with 12. First: add 5. Second: subtract 9. What is the final number?")
    assert check_steps(problem, ["Second: 12 + 5 = 17", "Second: 17 - 9 = 8"]) == [False, True]


def test_answer_too_early_or_too_late_is_wrong():
    problem = parse("Start with 12. First: add 5. Second: subtract 9. What is the final number?")
    assert check_steps(problem, ["First: 12 + 5 = 17", write_answer(17)]) == [True, False]
    assert check_steps(problem, [*problem.steps, write_answer(8)]) == [True, True, True, False]
    assert check_steps(problem, [*problem.steps[:2], "Third: 8 + 1 = 9"]) == [True, True, False]


@given(problems, st.integers(0, 10**6))
def test_corruption_spoils_steps_and_only_the_checker_labels_them(problem, seed):
    attempt = corrupt(problem, 1.0, random.Random(seed))
    assert len(attempt.steps) == len(problem.steps)
    assert list(attempt.labels) == check_steps(problem, attempt.steps)
    assert corrupt(problem, 0.0, random.Random(seed)).steps == problem.steps


def test_full_corruption_leaves_few_steps_right():
    rng = random.Random(0)
    labels = [label for _ in range(500) for label in corrupt(make_problem(4, rng), 1.0, rng).labels]
    assert sum(labels) < 0.1 * len(labels)


def test_splits_are_disjoint_and_balanced():
    test, validation = held_out(300, 0), held_out(300, 0, "validation")
    assert len({problem.text for problem in test}) == 300
    assert {split_of(problem.text) for problem in test} == {"held_out"}
    assert {split_of(problem.text) for problem in validation} == {"validation"}
    assert [problem.level for problem in test[:12]] == [1, 2, 3, 4, 5, 6] * 2
    rng = random.Random(0)
    share = sum(split_of(make_problem(6, rng).text) == "train" for _ in range(2000)) / 2000
    assert 0.87 < share < 0.93  # 0.9 by construction, standard error 0.007


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_example_is_held_out_and_fixed(level):
    assert example(level) == example(level)
    assert example(level).level == level
    assert split_of(example(level).text) == "held_out"


@given(problems)
def test_split_solution_inverts_joining(problem):
    assert tuple(split_solution(STEP_END.join(problem.steps))) == problem.steps
