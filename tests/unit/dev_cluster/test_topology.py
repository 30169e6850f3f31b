"""Names and addresses do not collide and fit their limits."""

from ipaddress import ip_address, ip_network
from itertools import pairwise

from dev.cluster import topology


def test_nodes_have_addresses_and_ranges_of_their_own():
    everyone = topology.nodes(topology.MAX_NODES)
    addresses = {node.address for node in everyone} | {topology.HOST_ADDRESS}
    assert len(addresses) == topology.MAX_NODES + 1
    for node in everyone:
        assert ip_network(node.pod_cidr).subnet_of(ip_network(topology.POD_CIDR))


def test_dns_is_a_service_address():
    assert ip_address(topology.DNS_ADDRESS) in ip_network(topology.SERVICE_CIDR)


def test_interface_names_fit_the_kernels_15_characters():
    names = [topology.BRIDGE, *(node.link for node in topology.nodes(topology.MAX_NODES))]
    assert all(len(name) <= 15 for name in names)


def test_a_node_has_no_route_to_its_own_pods():
    first, second = topology.nodes(2)
    routes = [" ".join(command) for command in topology.inside_commands(first, [first, second])]
    assert not any(first.pod_cidr in route for route in routes)
    assert any(second.pod_cidr in route for route in routes)


def test_the_cable_ends_in_the_namespace_of_the_process():
    commands = topology.cable_commands(topology.Node(1), 4242)
    assert commands[0][-2:] == ["netns", "4242"]


def test_the_bridge_has_an_address_of_its_own_which_stays_when_a_node_goes():
    assert ("address", topology.BRIDGE_MAC) in pairwise(topology.bridge_up_commands()[0])
    assert int(topology.BRIDGE_MAC[:2], 16) & 0b11 == 0b10, "locally administered, of one interface"
