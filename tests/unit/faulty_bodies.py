"""Models whose fault stands in a body or a function."""

from __future__ import annotations

import small_onnx as small
from faulty_parts import BOOL, UINT8, fault, pair
from onnx import ModelProto, helper
from small_onnx import model, value, weight

# -- in bodies -------------------------------------------------------------------------------------


@fault("error", "a_q", "UINT8", parser="accepts", why="the trap again, in a branch of an If")
def uint8_in_branch() -> ModelProto:
    nodes, tensors = pair("x", "a", kind=UINT8)
    then = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["a", "w"], ["t"], name="left")], "then", [], [value("t", [2, 4])], tensors
    )
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["e"], name="right")], "else", [], [value("e", [2, 4])])
    node = helper.make_node("If", ["flag"], ["y"], name="choose", then_branch=then, else_branch=other)
    return model([node], [value("x", [2, 8]), value("flag", [], BOOL)], [value("y", [2, 4])], [weight("w", 8, 4)])


@fault("error", "a_q", "zero point 5")
def zero_point_in_loop() -> ModelProto:
    made = small.loop()
    body = made.graph.node[0].attribute[0].g
    nodes, tensors = pair("s", "a", zero=5)
    body.initializer.extend(tensors)
    body.node[0].input[0] = "a"
    for index, node in enumerate(nodes):
        body.node.insert(index, node)
    return made


@fault("error", "b_q", "UINT8", parser="accepts", why="the trap again, in a function of the model's own")
def uint8_in_function() -> ModelProto:
    nodes, tensors = pair("a", "b", kind=UINT8)
    stored_in = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
    opset = [helper.make_opsetid("", 17)]
    made = model([helper.make_node("Halve", ["x"], ["y"], name="call", domain="my.own")], [value("x", [2, 8])], [value("y", [2, 8])])
    made.functions.append(helper.make_function("my.own", "Halve", ["a"], ["b"], [*stored_in, *nodes], opset))
    made.opset_import.append(helper.make_opsetid("my.own", 1))
    return made


@fault("error", "b_q", "zero point 5")
def zero_point_in_a_branch_of_a_function() -> ModelProto:
    made = uint8_in_function()
    function = made.functions[0]
    nodes, tensors = pair("a", "t", zero=5)
    for node, name in zip(nodes, ("b_q", "b_dq"), strict=True):
        node.name = name
    then = helper.make_graph(nodes, "then", [], [value("t", [2, 8])], tensors)
    other = helper.make_graph([helper.make_node("Identity", ["a"], ["e"], name="same")], "else", [], [value("e", [2, 8])])
    flag = helper.make_node("Constant", [], ["flag"], value=helper.make_tensor("flag", BOOL, [], [True]))
    del function.node[:]
    function.node.extend([flag, helper.make_node("If", ["flag"], ["b"], name="choose", then_branch=then, else_branch=other)])
    return made
