package gracenet

import (
	"net"
	"strings"
)

// An endpoint is what was asked for, resolved.
type endpoint struct {
	network string
	ip      net.IP
	port    int
	zone    string
	path    string // of a unix socket
}

func resolve(network, address string) (endpoint, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
		a, err := net.ResolveTCPAddr(network, address)
		if err != nil {
			return endpoint{}, err
		}
		return endpoint{network: network, ip: a.IP, port: a.Port, zone: a.Zone}, nil
	case "udp", "udp4", "udp6":
		a, err := net.ResolveUDPAddr(network, address)
		if err != nil {
			return endpoint{}, err
		}
		return endpoint{network: network, ip: a.IP, port: a.Port, zone: a.Zone}, nil
	default:
		return endpoint{network: network, path: address}, nil
	}
}

// is reports whether a socket bound to a is what was asked for.
func (e endpoint) is(a net.Addr) bool {
	if a, ok := a.(*net.UnixAddr); ok {
		return e.path != "" && a.Net == e.network && a.Name == e.path
	}
	ip, zone, ok := e.bound(a)
	if !ok || !e.family(ip) {
		return false
	}
	if e.unspecified() {
		return ip.IsUnspecified()
	}
	return e.ip.Equal(ip) && e.zone == zone
}

// isPartOf reports whether one address was asked for, and a socket bound to a has
// all of that port; those of IPv6 have the addresses of IPv4 too, but for
// IPV6_V6ONLY.
func (e endpoint) isPartOf(a net.Addr) bool {
	ip, _, ok := e.bound(a)
	return ok && e.family(ip) && !e.unspecified() && ip.IsUnspecified() && (e.isIPv4() || ip.To4() == nil)
}

// samePort reports whether a socket bound to a may be in the way.
func (e endpoint) samePort(a net.Addr) bool {
	_, _, ok := e.bound(a)
	return ok
}

// bound returns the rest of an address with the same protocol and port.
func (e endpoint) bound(a net.Addr) (ip net.IP, zone string, ok bool) {
	var port int
	switch a := a.(type) {
	case *net.TCPAddr:
		ip, port, zone = a.IP, a.Port, a.Zone
	case *net.UDPAddr:
		ip, port, zone = a.IP, a.Port, a.Zone
	default:
		return nil, "", false
	}
	return ip, zone, e.port != 0 && e.port == port && strings.HasPrefix(e.network, a.Network())
}

// family reports whether the network may have a socket bound to ip.
func (e endpoint) family(ip net.IP) bool {
	isIPv4 := ip.To4() != nil
	return !(strings.HasSuffix(e.network, "4") && !isIPv4 || strings.HasSuffix(e.network, "6") && isIPv4)
}

func (e endpoint) unspecified() bool { return len(e.ip) == 0 || e.ip.IsUnspecified() }

func (e endpoint) isIPv4() bool { return e.ip.To4() != nil }
