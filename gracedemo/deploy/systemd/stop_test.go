//go:build linux

package deploy

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/systemd"
)

var killModes = []string{"control-group", "mixed", "process"} // all that let a service finish

// A stop, however it is asked for and whenever in the drain, finishes the requests of
// both processes, and is a success.
func TestStopInADrain(t *testing.T) {
	t.Parallel()
	for _, mode := range killModes {
		for _, how := range []stop{
			{name: "stop", do: func(u *systemd.Unit) { u.Do("stop") }},
			{name: "restart", do: func(u *systemd.Unit) { u.Do("restart") }, again: true},
			{name: "kill", do: func(u *systemd.Unit) { u.Do("kill"); u.Await("ActiveState", "inactive|failed") }},
			// The main process hears of it twice.
			{name: "ExecStop", do: func(u *systemd.Unit) { u.Do("stop") }, setting: "ExecStop=/bin/kill -s TERM $MAINPID"},
		} {
			for _, at := range []instant{
				{name: "at its begin", last: "successor"},
				{name: "in it", wait: 1200 * time.Millisecond, last: "predecessor"},
				{name: "in it", wait: 1200 * time.Millisecond, last: "successor"},
				{name: "at its end", over: true, last: "successor"},
				{name: "just after", over: true, wait: 10 * time.Millisecond, last: "successor"},
				{name: "after it", over: true, wait: 300 * time.Millisecond, last: "successor"},
			} {
				t.Run(fmt.Sprintf("%s/%s/%s, the %s last", mode, how.name, at.name, at.last), func(t *testing.T) {
					t.Parallel()
					stopInADrain(t, mode, how, at)
				})
			}
		}
	}
}

// A stop is a way to ask for one.
type stop struct {
	name    string
	setting string // of the unit
	do      func(*systemd.Unit)
	again   bool // the unit is to be active again
}

// An instant of a drain.
type instant struct {
	name string
	over bool          // the predecessor's request is finished
	wait time.Duration // since that, or since the successor answers
	last string        // whose request is finished last
}

func stopInADrain(t *testing.T, mode string, how stop, at instant) {
	// Both requests outlast TimeoutStopSec: the service asks for the time.
	const soon, late = 800 * time.Millisecond, 1600 * time.Millisecond
	d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1", "Restart=on-failure", "KillMode="+mode, how.setting)
	d.Do("start")
	old, group := d.MainPID(), d.Get("ControlGroup")
	first := hold(t, d.addr, d.held)
	next := d.reload()
	second := hold(t, d.addr, d.held)
	if at.over {
		first.release()
	}
	time.Sleep(at.wait) // no event: this is the instant

	if at.last == "predecessor" {
		time.AfterFunc(soon, second.release)
		time.AfterFunc(late, first.release)
	} else {
		if !at.over {
			time.AfterFunc(soon, first.release)
		}
		time.AfterFunc(late, second.release)
	}
	how.do(d.Unit)
	left := members(t, group)
	first.by(old)
	second.by(next, old) // for a moment both accept
	equal(t, d.Unit, "Result", "success")
	if how.again {
		left = slices.DeleteFunc(left, func(pid int) bool { return pid == d.MainPID() })
		equal(t, d.Unit, "ActiveState", "active")
		if pid := ask(t, d.addr); pid != d.MainPID() || pid == old || pid == next {
			t.Errorf("pid %d answers, the main process is pid %d, and before there were pid %d and %d", pid, d.MainPID(), old, next)
		}
	} else {
		equal(t, d.Unit, "ActiveState", "inactive")
	}
	equal(t, d.Unit, "NRestarts", "0")
	if len(left) > 0 {
		t.Errorf("processes %v are left over of pid %d and its successor, pid %d", left, old, next)
	}
}

// Three generations: the second one drains, too, and is the main process.
func TestStopInTwoDrains(t *testing.T) {
	t.Parallel()
	for _, mode := range killModes {
		for _, last := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("%s/generation %d last", mode, last+1), func(t *testing.T) {
				t.Parallel()
				d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1", "Restart=on-failure", "KillMode="+mode)
				d.Do("start")
				group := d.Get("ControlGroup")
				pids := []int{d.MainPID()}
				requests := []*held{hold(t, d.addr, d.held)}
				for range 2 {
					pids = append(pids, d.reload())
					requests = append(requests, hold(t, d.addr, d.held))
				}
				for n, h := range requests {
					after := 300 * time.Millisecond
					if n == last {
						after = 1600 * time.Millisecond
					}
					time.AfterFunc(after, h.release)
				}
				d.Do("stop")
				left := members(t, group)
				for n, h := range requests {
					h.by(pids[max(n-1, 0) : n+1]...) // for a moment two of them accept
				}
				equal(t, d.Unit, "Result", "success")
				if len(left) > 0 {
					t.Errorf("of pids %v these are left over: %v", pids, left)
				}
			})
		}
	}
}

// A predecessor that stands by is the main process.
func TestStopInTheStandby(t *testing.T) {
	t.Parallel()
	for _, mode := range killModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d := newDemo(t, "gracedemo.service", "TimeoutStopSec=1", "KillMode="+mode)
			d.useTestServer("-standby 1m")
			d.Do("start")
			group, old := d.Get("ControlGroup"), d.MainPID()
			next := d.reload()
			h := hold(t, d.addr, d.held)
			time.Sleep(1200 * time.Millisecond) // no event: this is the instant
			equal(t, d.Unit, "MainPID", strconv.Itoa(old))
			time.AfterFunc(1600*time.Millisecond, h.release)
			d.Do("stop")
			left := members(t, group)
			h.by(next, old)
			equal(t, d.Unit, "Result", "success")
			if len(left) > 0 {
				t.Errorf("of pids %d and %d these are left over: %v", old, next, left)
			}
		})
	}
}

// members returns the processes of a control group, none if it is gone.
func members(t *testing.T, group string) (pids []int) {
	t.Helper()
	if group == "" {
		return nil
	}
	b, err := os.ReadFile("/sys/fs/cgroup" + group + "/cgroup.procs")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(b)) {
		pid, _ := strconv.Atoi(field)
		pids = append(pids, pid)
	}
	return pids
}
