package gracenet

import (
	"fmt"
	"net"
	"testing"
)

func TestSocketsAreFoundByWhatTheyAreBoundTo(t *testing.T) {
	tcp := func(ip string, port int) *net.TCPAddr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	udp := func(ip string, port int) *net.UDPAddr { return &net.UDPAddr{IP: net.ParseIP(ip), Port: port} }
	unix := func(network, name string) *net.UnixAddr { return &net.UnixAddr{Net: network, Name: name} }
	bound := []net.Addr{
		tcp("0.0.0.0", 80), tcp("::", 80), tcp("127.0.0.1", 80), tcp("::1", 80), tcp("0.0.0.0", 81), tcp("127.0.0.2", 80),
		&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 80, Zone: "eth0"},
		udp("0.0.0.0", 80), udp("::", 80), udp("127.0.0.1", 80),
		unix("unix", "/run/s"), unix("unixpacket", "/run/s"), unix("unixgram", "/run/s"), unix("unix", "@s"), unix("unix", ""),
		nil,
	}
	for _, test := range []struct {
		network, address string
		want             []string
	}{
		// All forms of the unspecified address are the same one.
		{"tcp", ":80", []string{"tcp 0.0.0.0:80", "tcp [::]:80"}},
		{"tcp", "0.0.0.0:80", []string{"tcp 0.0.0.0:80", "tcp [::]:80"}},
		{"tcp", "[::]:80", []string{"tcp 0.0.0.0:80", "tcp [::]:80"}},
		{"tcp", ":http", []string{"tcp 0.0.0.0:80", "tcp [::]:80"}},
		{"tcp", "[::ffff:0.0.0.0]:80", []string{"tcp 0.0.0.0:80", "tcp [::]:80"}},

		// Families are not confused.
		{"tcp4", ":80", []string{"tcp 0.0.0.0:80"}},
		{"tcp4", "0.0.0.0:80", []string{"tcp 0.0.0.0:80"}},
		{"tcp6", ":80", []string{"tcp [::]:80"}},
		{"tcp6", "[::]:80", []string{"tcp [::]:80"}},
		{"tcp4", "127.0.0.1:80", []string{"tcp 127.0.0.1:80"}},
		{"tcp6", "[::1]:80", []string{"tcp [::1]:80"}},

		// An address is itself only.
		{"tcp", "127.0.0.1:80", []string{"tcp 127.0.0.1:80"}},
		{"tcp", "[::ffff:127.0.0.1]:80", []string{"tcp 127.0.0.1:80"}},
		{"tcp", "[::1]:80", []string{"tcp [::1]:80"}},
		{"tcp", "127.0.0.3:80", nil},
		{"tcp", ":82", nil},
		{"tcp", "0.0.0.0:81", []string{"tcp 0.0.0.0:81"}},
		{"tcp", "[fe80::1%eth0]:80", []string{"tcp [fe80::1%eth0]:80"}},
		{"tcp", "[fe80::1%eth1]:80", nil},
		{"tcp", "[fe80::1]:80", nil},

		// Any free port is none in particular.
		{"tcp", ":0", nil},
		{"tcp", "127.0.0.1:0", nil},
		{"tcp4", "0.0.0.0:0", nil},
		{"tcp", ":", nil},
		{"udp", ":0", nil},

		// Stream and datagram sockets are not confused.
		{"udp", ":80", []string{"udp 0.0.0.0:80", "udp [::]:80"}},
		{"udp4", ":80", []string{"udp 0.0.0.0:80"}},
		{"udp6", "[::]:80", []string{"udp [::]:80"}},
		{"udp", "127.0.0.1:80", []string{"udp 127.0.0.1:80"}},
		{"udp6", "[::1]:80", nil},

		// Paths.
		{"unix", "/run/s", []string{"unix /run/s"}},
		{"unixpacket", "/run/s", []string{"unixpacket /run/s"}},
		{"unixgram", "/run/s", []string{"unixgram /run/s"}},
		{"unix", "@s", []string{"unix @s"}},
		{"unix", "/run/t", nil},
		{"unix", "", nil},
	} {
		t.Run(test.network+" "+test.address, func(t *testing.T) {
			e, err := resolve(test.network, test.address)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range bound {
				if e.is(a) {
					got = append(got, a.Network()+" "+a.String())
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("matches %q, want %q", got, test.want)
			}
		})
	}
}

// Port 0 belongs to no family and no address: such a socket is found by what
// was asked for.
func TestNoSocketIsBoundToPort0(t *testing.T) {
	for _, network := range []string{"tcp", "tcp4", "tcp6"} {
		for _, ip := range []string{"0.0.0.0", "::", "127.0.0.1", "::1"} {
			a := &net.TCPAddr{IP: net.ParseIP(ip)}
			e := endpoint{network: network, at: a.AddrPort()}
			if e.is(a) || e.samePort(a) {
				t.Errorf("%s %s, port 0, is taken for an address", network, ip)
			}
		}
	}
}

// Every pair of a wanted and a bound address, against the rules one by one.
func TestEndpointsExhaustively(t *testing.T) {
	ips := []string{"", "0.0.0.0", "::", "127.0.0.1", "127.0.0.2", "::1", "::2"}
	v4 := func(ip string) bool { return net.ParseIP(ip).To4() != nil }
	unspecified := func(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
	for _, network := range []string{"tcp", "tcp4", "tcp6"} {
		for _, want := range ips {
			for _, is := range ips[1:] { // a socket is bound to something
				for _, wantPort := range []int{0, 1, 2} {
					for _, isPort := range []int{1, 2} {
						same := wantPort == isPort && (want == is || unspecified(want) && unspecified(is))
						// All of a port serves for one of its addresses, of IPv4 too.
						part := wantPort == isPort && !unspecified(want) && unspecified(is) && (v4(want) || !v4(is))
						if network == "tcp4" && !v4(is) || network == "tcp6" && v4(is) {
							same, part = false, false
						}
						asked, a := &net.TCPAddr{IP: net.ParseIP(want), Port: wantPort}, &net.TCPAddr{IP: net.ParseIP(is), Port: isPort}
						e := endpoint{network: network, at: asked.AddrPort()}
						if got := e.is(a); got != same {
							t.Errorf("%s: a socket on %v is what %q port %d asks for: %v, want %v", network, a, want, wantPort, got, same)
						}
						if got := e.isPartOf(a); got != part {
							t.Errorf("%s: %q port %d is part of what a socket on %v has: %v, want %v", network, want, wantPort, a, got, part)
						}
					}
				}
			}
		}
	}
}

func TestAddressesThatAreNoneAreErrors(t *testing.T) {
	for _, test := range [][2]string{{"tcp", "80"}, {"tcp", ":99999"}, {"tcp", ":no-such-port"}, {"tcp4", "[::1]:80"}, {"udp", "nonsense"}} {
		if _, err := resolve(test[0], test[1]); err == nil {
			t.Errorf("%s %s: no error", test[0], test[1])
		}
	}
}
