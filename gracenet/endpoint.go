package gracenet

import (
	"net"
	"net/netip"
	"strings"
)

// An endpoint is what was asked for, resolved.
type endpoint struct {
	network string
	at      netip.AddrPort
	path    string // of a unix socket
}

// An ipAddr is a *net.TCPAddr or *net.UDPAddr.
type ipAddr interface{ AddrPort() netip.AddrPort }

func resolve(network, address string) (endpoint, error) {
	var a ipAddr
	var err error
	switch network {
	case "tcp", "tcp4", "tcp6":
		a, err = net.ResolveTCPAddr(network, address)
	case "udp", "udp4", "udp6":
		a, err = net.ResolveUDPAddr(network, address)
	default:
		return endpoint{network: network, path: address}, nil
	}
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{network: network, at: a.AddrPort()}, nil
}

// is reports whether a socket bound to a is what was asked for.
func (e endpoint) is(a net.Addr) bool {
	if a, ok := a.(*net.UnixAddr); ok {
		return e.path != "" && a.Net == e.network && a.Name == e.path
	}
	ip, ok := e.bound(a)
	if !ok || !e.family(ip) {
		return false
	}
	if e.unspecified() {
		return ip.IsUnspecified()
	}
	return e.ip() == ip
}

// isPartOf reports whether one address was asked for, and a socket bound to a has
// all of that port; those of IPv6 have the addresses of IPv4 too, but for
// IPV6_V6ONLY.
func (e endpoint) isPartOf(a net.Addr) bool {
	ip, ok := e.bound(a)
	return ok && e.family(ip) && !e.unspecified() && ip.IsUnspecified() && (e.ip().Is4() || ip.Is6())
}

// samePort reports whether a socket bound to a may be in the way.
func (e endpoint) samePort(a net.Addr) bool {
	_, ok := e.bound(a)
	return ok
}

// bound returns the rest of an address with the same protocol and port.
func (e endpoint) bound(a net.Addr) (ip netip.Addr, ok bool) {
	b, ok := a.(ipAddr)
	if !ok || e.at.Port() == 0 || e.at.Port() != b.AddrPort().Port() {
		return ip, false
	}
	return b.AddrPort().Addr().Unmap(), strings.HasPrefix(e.network, a.Network())
}

// family reports whether the network may have a socket bound to ip.
func (e endpoint) family(ip netip.Addr) bool {
	return !(strings.HasSuffix(e.network, "4") && !ip.Is4() || strings.HasSuffix(e.network, "6") && ip.Is4())
}

func (e endpoint) ip() netip.Addr { return e.at.Addr().Unmap() }

func (e endpoint) unspecified() bool { return !e.ip().IsValid() || e.ip().IsUnspecified() }
