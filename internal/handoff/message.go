package handoff

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// The control socket carries messages in both directions: a header of eight
// bytes, then a body in JSON.
//
//	0  4  length of the body in bytes, big endian
//	4  2  kind
//	6  2  number of descriptors that travel with the message (SCM_RIGHTS)
//
// A kind that the receiver does not know is skipped, and its descriptors are
// closed; so are fields of a body that it does not know. Thus two versions of
// this package understand each other.
type kind uint16

const (
	kindHello      kind = 1 + iota // successor: speaks this protocol (helloBody)
	kindSocket                     // predecessor: what an inherited descriptor is (socketBody)
	kindState                      // predecessor: state by name (stateBody)
	kindBegin                      // predecessor: all sockets and states are told
	kindReady                      // successor: serves (readyBody)
	kindConns                      // predecessor: a batch of connections, after a socket for the answer (connsBody)
	kindTaken                      // successor, on that socket: its answer (takenBody)
	kindStepDown                   // successor: is itself ending; do not take over again if it exits (stepDownBody)
	kindStatus                     // predecessor: how its drain goes, in words (Status)
	kindGiveUp                     // predecessor: no longer waits for ready, and serves on
	kindStop                       // predecessor: was told to stop, which is meant for the service
	_                              // was of use to earlier versions
	_                              // so was this
	kindWaits                      // successor: runs Wait, and knows kindStop
	kindServeAgain                 // successor: its own has failed, so that kindStepDown no longer holds
	kindDrained                    // predecessor: its drain is over
	kindMove                       // predecessor: connections of the program's own, after a socket for the answer (moveBody)
)

const (
	headerSize = 8
	// maxBody is for all kinds but kindMove, whose states are in base64. Earlier versions
	// do not know that one, and are not sent any.
	maxBody     = 1 << 20
	maxMoveBody = 2 << 20
	// maxFDs is the kernel's limit for one message (SCM_MAX_FD).
	maxFDs = 253
)

type helloBody struct {
	Takes bool // it takes connections over
	Moves bool `json:",omitempty"` // those of the program's own too
}

type readyBody struct {
	// Kept are the listening sockets that it serves on, by their place in LISTEN_FDS.
	// One of an earlier version does not say.
	Kept []int
	// Rebound are others of them, whose paths lead to sockets that it has opened.
	Rebound []int `json:",omitempty"`
}

// A socketBody describes one socket or file. A listening socket has no
// descriptor here: the message's place among its like is its place in
// LISTEN_FDS. Packet sockets and files travel with their message.
type socketBody struct {
	Kind      Kind
	Network   string `json:",omitempty"`
	Address   string `json:",omitempty"`
	Name      string `json:",omitempty"`
	Activated bool   `json:",omitempty"`
	Alone     bool   `json:",omitempty"` // a listening socket of these two alone, as Socket.alone
}

type stateBody struct {
	Name  string
	Value []byte
}

type connsBody struct {
	Listener int       // its place in LISTEN_FDS
	Waiting  []Waiting `json:",omitempty"` // one for each connection
}

// Waiting is how long a connection has waited for its next request.
type Waiting struct {
	First bool  `json:",omitempty"` // it has brought none yet
	For   int64 `json:",omitempty"` // milliseconds
}

type takenBody struct {
	Error string `json:",omitempty"` // why the batch was refused; empty: taken
}

type stepDownBody struct {
	Stopping bool `json:",omitempty"` // it was told to; else it has a successor
}

// A Status is what a predecessor says of its drain.
type Status struct {
	Text string
	Main bool `json:",omitempty"` // who hears it is the service manager's main process now
}

type moveBody struct {
	States [][]byte // what the program says of each connection
}

// A message is one as received. Its receiver owns the descriptors.
type message struct {
	kind      kind
	body      []byte
	announced int // descriptors, by its header
	fds       []int
}

// truncated reports whether descriptors were lost on the way: the receiver's table was
// full (MSG_CTRUNC).
func (m *message) truncated() bool { return len(m.fds) != m.announced }

// decode fills in the body.
func (m *message) decode(body any) error {
	if err := json.Unmarshal(m.body, body); err != nil {
		return fmt.Errorf("control message of kind %d: %w", m.kind, err)
	}
	return nil
}

// encode returns header and body of a message that carries fds descriptors.
func encode(k kind, body any, fds int) ([]byte, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	if len(text) > limit(k) || fds > maxFDs {
		return nil, fmt.Errorf("control message of kind %d: %d bytes and %d descriptors are too many", k, len(text), fds)
	}
	b := make([]byte, headerSize, headerSize+len(text))
	binary.BigEndian.PutUint32(b[0:], uint32(len(text)))
	binary.BigEndian.PutUint16(b[4:], uint16(k))
	binary.BigEndian.PutUint16(b[6:], uint16(fds))
	return append(b, text...), nil
}

// limit returns how long a body may be.
func limit(k kind) int {
	if k == kindMove {
		return maxMoveBody
	}
	return maxBody
}

// parseHeader returns what a header announces.
func parseHeader(b [headerSize]byte) (k kind, body, fds int, err error) {
	n := binary.BigEndian.Uint32(b[0:])
	k = kind(binary.BigEndian.Uint16(b[4:]))
	fds = int(binary.BigEndian.Uint16(b[6:]))
	if int64(n) > int64(limit(k)) || fds > maxFDs {
		return 0, 0, 0, fmt.Errorf("control message of kind %d announces %d bytes and %d descriptors", k, n, fds)
	}
	return k, int(n), fds, nil
}
