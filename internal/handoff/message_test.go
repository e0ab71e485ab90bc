package handoff

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"
)

// bodies has one of each kind of message.
var bodies = []struct {
	kind kind
	body any // nil: none
}{
	{kindHello, helloBody{Takes: true}},
	{kindSocket, socketBody{Kind: Listener, Network: "tcp", Address: ":80"}},
	{kindSocket, socketBody{Kind: File, Name: "log", Activated: true}},
	{kindState, stateBody{"tickets", []byte{0, 1, 0xff}}},
	{kindBegin, nil},
	{kindReady, nil}, // of an earlier version
	{kindReady, readyBody{Kept: []int{0, 2}}},
	{kindConns, connsBody{Listener: 3}},
	{kindConns, connsBody{Listener: 3, Waiting: []Waiting{{First: true, For: 1500}, {}}}},
	{kindTaken, takenBody{}},
	{kindTaken, takenBody{Error: "too many"}},
	{kindStepDown, nil},
	{kindStepDown, stepDownBody{Stopping: true}},
	{kindStatus, Status{Text: "draining: 5 left", Main: true}},
	{kindGiveUp, nil},
	{kindStop, nil},
	{kindWaits, nil},
	{kindServeAgain, nil},
	{kindDrained, nil},
	{kindMove, moveBody{States: [][]byte{[]byte("alice"), nil}}},
}

// The numbers and names are what another version of this package, in another
// process, goes by.
func TestWireFormatStays(t *testing.T) {
	for _, test := range []struct {
		kind kind
		body any
		fds  int
		want string
	}{
		{kindHello, helloBody{Takes: true}, 0, "\x00\x00\x00\x0e\x00\x01\x00\x00" + `{"Takes":true}`},
		{kindSocket, socketBody{Kind: Packet, Network: "udp", Address: ":53", Name: "dns", Activated: true}, 1,
			"\x00\x00\x00\x54\x00\x02\x00\x01" + `{"Kind":"packet","Network":"udp","Address":":53","Name":"dns","Activated":true}`},
		{kindState, stateBody{"a", []byte("b")}, 0, "\x00\x00\x00\x1b\x00\x03\x00\x00" + `{"Name":"a","Value":"Yg=="}`},
		{kindBegin, nil, 0, "\x00\x00\x00\x00\x00\x04\x00\x00"},
		{kindReady, nil, 0, "\x00\x00\x00\x00\x00\x05\x00\x00"},
		{kindConns, connsBody{Listener: 2}, 253, "\x00\x00\x00\x0e\x00\x06\x00\xfd" + `{"Listener":2}`},
		{kindTaken, takenBody{"no"}, 0, "\x00\x00\x00\x0e\x00\x07\x00\x00" + `{"Error":"no"}`},
		{kindStepDown, nil, 0, "\x00\x00\x00\x00\x00\x08\x00\x00"},
		{kindStatus, Status{"x", true}, 0, "\x00\x00\x00\x18\x00\x09\x00\x00" + `{"Text":"x","Main":true}`},
		{kindGiveUp, nil, 0, "\x00\x00\x00\x00\x00\x0a\x00\x00"},
		{kindStop, nil, 0, "\x00\x00\x00\x00\x00\x0b\x00\x00"},
		{kindWaits, nil, 0, "\x00\x00\x00\x00\x00\x0e\x00\x00"},
		{kindServeAgain, nil, 0, "\x00\x00\x00\x00\x00\x0f\x00\x00"},
		{kindDrained, nil, 0, "\x00\x00\x00\x00\x00\x10\x00\x00"},
		{kindMove, moveBody{[][]byte{[]byte("b")}}, 2, "\x00\x00\x00\x00\x00\x11\x00\x02" + `{"States":["Yg=="]}`},
		{kindHello, helloBody{Takes: true, Moves: true}, 0, "\x00\x00\x00\x00\x00\x01\x00\x00" + `{"Takes":true,"Moves":true}`},
		{kindReady, readyBody{Kept: []int{0, 2}}, 0, "\x00\x00\x00\x00\x00\x05\x00\x00" + `{"Kept":[0,2]}`},
		{kindConns, connsBody{1, []Waiting{{First: true, For: 5}}}, 2,
			"\x00\x00\x00\x00\x00\x06\x00\x02" + `{"Listener":1,"Waiting":[{"First":true,"For":5}]}`},
		{kindStepDown, stepDownBody{true}, 0, "\x00\x00\x00\x00\x00\x08\x00\x00" + `{"Stopping":true}`},
	} {
		got, err := encode(test.kind, test.body, test.fds)
		want := []byte(test.want)
		binary.BigEndian.PutUint32(want, uint32(len(want)-headerSize))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("kind %d: %q, %v, want %q", test.kind, got, err, want)
		}
	}
}

func TestBodiesSurviveTheWire(t *testing.T) {
	for _, test := range bodies {
		b, err := encode(test.kind, test.body, 2)
		if err != nil {
			t.Fatal(err)
		}
		k, n, fds, err := parseHeader([headerSize]byte(b))
		if err != nil || k != test.kind || fds != 2 || n != len(b)-headerSize {
			t.Errorf("kind %d with %d bytes and 2 descriptors is read as kind %d, %d bytes, %d descriptors, %v",
				test.kind, len(b)-headerSize, k, n, fds, err)
		}
		if test.body == nil {
			continue
		}
		got := reflect.New(reflect.TypeOf(test.body))
		m := &message{kind: k, body: b[headerSize:]}
		if err := m.decode(got.Interface()); err != nil || !reflect.DeepEqual(got.Elem().Interface(), test.body) {
			t.Errorf("%+v is read as %+v, %v", test.body, got.Elem(), err)
		}
	}
}

func TestFieldsOfALaterVersionAreSkipped(t *testing.T) {
	m := &message{kind: kindHello, body: []byte(`{"Takes":true,"Compresses":["a",{"b":1}]}`)}
	var b helloBody
	if err := m.decode(&b); err != nil || !b.Takes {
		t.Errorf("read as %+v, %v", b, err)
	}
}

func TestTooLargeMessagesAreRefusedOnBothSides(t *testing.T) {
	if _, err := encode(kindStatus, Status{Text: strings.Repeat("x", maxBody)}, 0); err == nil {
		t.Error("a body that is too large was encoded")
	}
	if _, err := encode(kindConns, connsBody{}, maxFDs+1); err == nil {
		t.Error("too many descriptors were encoded")
	}
	// What a program says of its connections, a megabyte, is in base64.
	if _, err := encode(kindMove, moveBody{[][]byte{make([]byte, 1<<20)}}, 2); err != nil {
		t.Errorf("the largest state does not fit: %v", err)
	}
	if _, err := encode(kindMove, moveBody{[][]byte{make([]byte, maxMoveBody)}}, 2); err == nil {
		t.Error("states that are too large were encoded")
	}
	header := func(k kind, body uint32, fds uint16) (b [headerSize]byte) {
		binary.BigEndian.PutUint32(b[0:], body)
		binary.BigEndian.PutUint16(b[4:], uint16(k))
		binary.BigEndian.PutUint16(b[6:], fds)
		return b
	}
	for _, b := range [][headerSize]byte{
		header(kindConns, maxBody+1, 0), header(kindConns, 0xffffffff, 0), header(kindConns, 0, maxFDs+1), header(kindConns, 0, 0xffff),
		header(kindMove, maxMoveBody+1, 0),
	} {
		if k, n, fds, err := parseHeader(b); err == nil {
			t.Errorf("header %x is read as kind %d, %d bytes, %d descriptors", b, k, n, fds)
		}
	}
	if _, n, fds, err := parseHeader(header(kindConns, maxBody, maxFDs)); err != nil || n != maxBody || fds != maxFDs {
		t.Errorf("the largest message is read as %d bytes, %d descriptors, %v", n, fds, err)
	}
}
