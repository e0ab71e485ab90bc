package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/facebookgo/grace/gracedemo/deploy/fleet"
)

func TestFleetIsAsDeployed(t *testing.T) {
	if d, err := fleetLameDuck(); err != nil || d <= 0 {
		t.Errorf("a lame duck of %v: %v", d, err)
	}
	addrs := []string{"127.0.0.1:20001", "127.0.0.1:20002", "127.0.0.1:20003", "127.0.0.1:20004"}
	for name, conf := range map[string]string{"haproxy": fleet.HAProxy, "nginx": fleet.Nginx} {
		got, err := withServers(conf, addrs)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		names := make(map[string]bool)
		var servers []string
		for line := range strings.SplitSeq(got, "\n") {
			if strings.HasPrefix(line, "\tserver ") {
				words := strings.Fields(line)
				names[words[1]] = true
				servers = append(servers, words[map[string]int{"haproxy": 2, "nginx": 1}[name]])
			}
		}
		if !slices.Equal(servers, addrs) || len(names) != len(addrs) {
			t.Errorf("%s: servers %v, called %v", name, servers, names)
		}
	}
	if _, err := withServers("server {\n}\n", addrs); err == nil {
		t.Error("a configuration without servers is taken")
	}
}

// Nothing may be lost with the lame duck, and a fleet that loses nothing without one was not looked at.
func TestFleetFailsUnlessOnlyItsControlLoses(t *testing.T) {
	for _, test := range []struct {
		balancer                     string
		restarted, replaced, control int
		fails                        bool
	}{
		{"haproxy", 0, 0, 7, false},
		{"haproxy", 0, 0, 0, true},
		{"layer 4", 0, 0, 0, true},
		{"nginx", 0, 0, 0, false},
		{"nginx", 1, 0, 7, true},
		{"layer 4", 0, 1, 7, true},
	} {
		err := judgeFleet([]fleetRow{
			{Balancer: "other", Skipped: "not installed"},
			{Balancer: test.balancer, Restarted: &row{Lost: test.restarted}, Replaced: &row{Lost: test.replaced}, Control: &row{}},
			{Balancer: test.balancer, Restarted: &row{}, Replaced: &row{}, Control: &row{Lost: test.control}},
		})
		if (err != nil) != test.fails {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

// startForwarderTo starts a forwarder to servers that answer with their numbers and can be made not ready.
func startForwarderTo(t *testing.T, late time.Duration, n int) (addr string, down []atomic.Bool) {
	down = make([]atomic.Bool, n)
	f := &forwarder{late: late}
	for i := range n {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == readyPath && down[i].Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprint(w, i)
		}))
		t.Cleanup(s.Close)
		f.endpoints = append(f.endpoints, s.Listener.Addr().String())
	}
	addr, err := f.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return addr, down
}

func TestForwarderRemovesAnEndpointLate(t *testing.T) {
	t.Parallel()
	const late = 300 * time.Millisecond
	addr, down := startForwarderTo(t, late, 2)
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: answerTimeout}
	ask := func() string {
		resp, err := c.Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		name, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(name)
	}
	until := func(what string, done func(last, this string) bool) {
		for last, end := ask(), time.Now().Add(answerTimeout); ; {
			this := ask()
			if done(last, this) {
				return
			}
			if last = this; time.Now().After(end) {
				t.Fatalf("not seen: %s", what)
			}
		}
	}
	until("both in turn", func(last, this string) bool { return last != this })
	down[0].Store(true)
	said := time.Now()
	until("the other one alone", func(last, this string) bool { return last == "1" && this == "1" })
	if took := time.Since(said); took < late {
		t.Errorf("removed after %v, want %v at least", took, late)
	}
	down[0].Store(false)
	until("both in turn", func(last, this string) bool { return last != this })
}

// Delays must not reorder, and the end of what one side sends is not the end of the other's.
func TestForwarderDelaysBothDirectionsAndTheirEnds(t *testing.T) {
	const delay = 30 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				all, _ := io.ReadAll(conn)
				conn.Write(append([]byte("all of "), all...))
			}()
		}
	}()
	f := &forwarder{endpoints: []string{l.Addr().String()}, late: time.Hour, delay: delay}
	addr, err := f.start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(answerTimeout))
	began := time.Now()
	_, err = io.WriteString(conn, "it")
	err = errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	got, readErr := io.ReadAll(conn)
	if err := errors.Join(err, readErr); err != nil || string(got) != "all of it" {
		t.Errorf("got %q, %v", got, err)
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("took %v, less than a delay of %v in each direction", took, delay)
	}
}
