package main

import (
	"net"
	"os"
	"testing"
	"time"
)

func TestLedgerExplainsOnlyWhatAKilledProcessHeldOrWhatCameWhileNobodyServed(t *testing.T) {
	for _, test := range []struct {
		name      string
		loss      loss
		explained bool
	}{
		{"held by the killed process", loss{addr: "held", opened: 50, began: 90, ended: 101}, true},
		{"sent after the kill, on the same connection", loss{addr: "held", opened: 50, began: 110, ended: 111}, true},
		{"lost before the kill", loss{addr: "held", opened: 50, began: 80, ended: 99}, false},
		{"the same address again, later", loss{addr: "held", opened: 120, began: 130, ended: 140}, false},
		{"held by another process", loss{addr: "other", opened: 50, began: 90, ended: 101}, false},
		{"refused while somebody served", loss{opened: 150, began: 150, ended: 151}, false},
		{"refused while nobody served", loss{opened: 250, began: 250, ended: 251}, true},
		{"under way when the last one ended", loss{addr: "other", opened: 150, began: 190, ended: 200}, true},
		{"lost before the last one ended", loss{addr: "other", opened: 150, began: 190, ended: 199}, false},
		{"sent when somebody served again", loss{addr: "other", opened: 150, began: 301, ended: 310}, false},
	} {
		l := ledger{kills: map[string]time.Duration{"held": 100}, downs: []down{{200, 300}}}
		l.lose(test.loss)
		if err := l.settle(); (err == nil) != test.explained {
			t.Errorf("%s: %v", test.name, err)
		}
		if err := l.settle(); err != nil {
			t.Errorf("%s: told twice: %v", test.name, err)
		}
	}
}

func TestHeldConnectionsAreTheProcessesOwn(t *testing.T) {
	if !procKnown {
		t.Skip("needs /proc")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	client, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	held := func() bool {
		all, err := connectionsTo(addr)
		if err != nil {
			t.Fatal(err)
		}
		return heldBy(os.Getpid(), all)[client.LocalAddr().String()]
	}
	if held() {
		t.Error("a connection that nobody has accepted is held")
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if !held() {
		t.Error("an accepted connection is not held")
	}
	server.Close()
	if held() {
		t.Error("a closed connection is held")
	}
}
