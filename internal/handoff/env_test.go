package handoff

import (
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const ownPid = 4711

// newBirth returns a process that was started with these variables, and the sockets that
// they name.
func newBirth(env map[string]string) *birth {
	b := &birth{pid: ownPid}
	for name, value := range env {
		b.env = append(b.env, name+"="+value)
	}
	if env[envControl] != "" {
		b.control = &control{}
	}
	if env[envSupervisor] != "" {
		b.supervisor = &net.UnixConn{}
	}
	return b
}

func TestOriginIsDecidedByTheEnvironment(t *testing.T) {
	type env map[string]string
	for _, test := range []struct {
		name string
		env  env
		same bool // the parent has our program file or command line, and is built on facebookgo/grace
		shut bool // its file cannot be read
		bare bool // it is built on neither that nor this library
		ours bool // it is built on this library
		all  bool // all that is announced listens
		want announcement
		err  string // part of the error
	}{
		// A shell, an init.
		{name: "nothing", same: true},
		{name: "empty LISTEN_FDS", env: env{envFDs: ""}, same: true},
		{name: "only LISTEN_PID", env: env{envPID: "4711"}, same: true},
		{name: "only LISTEN_FDNAMES", env: env{envNames: "a:b"}, same: true},
		{name: "only a supervisor", env: env{envSupervisor: "3"}, same: true},

		// systemd's socket activation.
		{name: "activated", env: env{envFDs: "2", envPID: "4711"},
			want: announcement{origin: Activated, count: 2}},
		{name: "activated, parent is the same program", env: env{envFDs: "2", envPID: "4711"}, same: true,
			want: announcement{origin: Activated, count: 2}},
		{name: "activated with names", env: env{envFDs: "2", envPID: "4711", envNames: "web:admin"},
			want: announcement{origin: Activated, count: 2, names: []string{"web", "admin"}}},
		{name: "activated with names, one empty", env: env{envFDs: "3", envPID: "4711", envNames: "web::admin"},
			want: announcement{origin: Activated, count: 3, names: []string{"web", "", "admin"}}},
		{name: "activated without sockets", env: env{envFDs: "0", envPID: "4711"},
			want: announcement{origin: Activated}},
		{name: "activated by way of a supervisor", env: env{envFDs: "1", envSupervisor: "4", envNames: "web"}, ours: true,
			want: announcement{origin: Activated, count: 1, names: []string{"web"}}},

		// A launcher that cannot know the pid.
		{name: "all announced descriptors listen", env: env{envFDs: "2", envNames: "web:admin"}, all: true,
			want: announcement{origin: Activated, count: 2, names: []string{"web", "admin"}}},
		{name: "none is announced", env: env{envFDs: "0"}, all: true},
		{name: "all listen, for another process", env: env{envFDs: "2", envPID: "99"}, all: true},
		{name: "all listen, parent is this program", env: env{envFDs: "2"}, ours: true, all: true,
			want: announcement{origin: Activated, count: 2}},

		// This library.
		{name: "successor", env: env{envFDs: "2", envControl: "5"},
			want: announcement{origin: Succeeded, count: 2}},
		{name: "successor without sockets", env: env{envFDs: "0", envControl: "3"},
			want: announcement{origin: Succeeded}},
		{name: "successor, no count", env: env{envControl: "3"},
			want: announcement{origin: Succeeded}},
		{name: "successor with a stale LISTEN_PID", env: env{envFDs: "2", envControl: "5", envPID: "99"},
			want: announcement{origin: Succeeded, count: 2}},
		{name: "successor with its own LISTEN_PID", env: env{envFDs: "2", envControl: "5", envPID: "4711"},
			want: announcement{origin: Succeeded, count: 2}},
		{name: "supervised successor", env: env{envFDs: "2", envControl: "5", envSupervisor: "6"},
			want: announcement{origin: Succeeded, count: 2}},

		// facebookgo/grace.
		{name: "legacy successor", env: env{envFDs: "2"}, same: true,
			want: announcement{origin: SucceededLegacy, count: 2}},
		{name: "legacy successor with a stale LISTEN_PID", env: env{envFDs: "2", envPID: "99"}, same: true,
			want: announcement{origin: SucceededLegacy, count: 2}},
		{name: "legacy successor, parent supervised", env: env{envFDs: "2", envSupervisor: "5"}, same: true,
			want: announcement{origin: SucceededLegacy, count: 2}},
		{name: "legacy successor without sockets", env: env{envFDs: "0"}, same: true},

		{name: "legacy successor whose sockets listen", env: env{envFDs: "2"}, same: true, all: true,
			want: announcement{origin: SucceededLegacy, count: 2}},

		{name: "legacy successor, parent's file is closed to us", env: env{envFDs: "2"}, shut: true,
			want: announcement{origin: SucceededLegacy, count: 2}},

		// A parent that has our name, and is built on something else.
		{name: "parent is built on something else", env: env{envFDs: "2"}, bare: true},
		{name: "parent is built on something else, all listen", env: env{envFDs: "2"}, bare: true, all: true,
			want: announcement{origin: Activated, count: 2}},
		{name: "parent is built on something else, for another process", env: env{envFDs: "2", envPID: "99"}, bare: true, all: true},

		// Leaked.
		{name: "leaked, parent is this program", env: env{envFDs: "2"}, ours: true},
		{name: "leaked, for the parent, which is this program", env: env{envFDs: "2", envPID: "99"}, ours: true},
		{name: "leaked", env: env{envFDs: "2"}},
		{name: "leaked, for another process", env: env{envFDs: "2", envPID: "99"}},
		{name: "leaked, for another process, by way of a supervisor", env: env{envFDs: "2", envPID: "99", envSupervisor: "5"}},
		{name: "leaked nonsense for another process", env: env{envFDs: "many", envPID: "99"}, same: true},
		{name: "LISTEN_PID is compared as a number would be written", env: env{envFDs: "2", envPID: "+4711"}},

		// Meant for nobody.
		{name: "not a number", env: env{envFDs: "many"}, err: `LISTEN_FDS="many"`},
		{name: "not a number, own pid", env: env{envFDs: "2 ", envPID: "4711"}, err: `LISTEN_FDS="2 "`},
		{name: "negative", env: env{envFDs: "-1"}, same: true, err: `LISTEN_FDS="-1"`},
		{name: "larger than any number", env: env{envFDs: "99999999999999999999"}, err: "LISTEN_FDS"},
		{name: "not a number, for a successor", env: env{envFDs: "many", envControl: "5"}, err: `LISTEN_FDS="many"`},
		{name: "not a number, for a successor, stale LISTEN_PID", env: env{envFDs: "many", envControl: "5", envPID: "99"}, err: `LISTEN_FDS="many"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBirth(test.env)
			b.parent.same = test.same || test.shut || test.bare || test.ours
			switch {
			case test.ours:
				b.parent.program = Ours
			case test.same:
				b.parent.program = Original
			case test.bare:
				b.parent.program = Neither
			}
			asked := -1
			got, err := b.announcement(func(n int) bool { asked = n; return test.all })
			if asked >= 0 && strconv.Itoa(asked) != test.env[envFDs] {
				t.Errorf("looked whether %d descriptors listen", asked)
			}
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want one that names %s", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestSuccessorFindsWhatWasAnnounced(t *testing.T) {
	for _, i := range []inheritance{
		{control: true},
		{count: 1, control: true},
		{count: 1000, control: true, supervisor: true},
		{count: 2, names: "web:admin", supervisor: true},
	} {
		env := i.environ([]string{
			"PATH=/bin", envPID + "=99", envFDs + "=77", envControl + "=88", envSupervisor + "=66", envNames + "=stale", envPIDFD + "=5",
		})
		variables := map[string]string{}
		for _, v := range env {
			name, value, _ := strings.Cut(v, "=")
			variables[name] = value
		}
		b := newBirth(variables)
		b.parent = parent{same: true, program: Ours}
		a, err := b.announcement(func(int) bool { return false })
		if err != nil {
			t.Errorf("%+v: %v", i, err)
			continue
		}
		want := announcement{origin: Activated, count: i.count}
		if i.control {
			want = announcement{origin: Succeeded, count: i.count}
		} else if i.names != "" {
			want.names = strings.Split(i.names, ":")
		}
		if !reflect.DeepEqual(a, want) {
			t.Errorf("%+v is read as %+v, want %+v", i, a, want)
		}
		wantControl, wantSupervisor := "", ""
		if i.control {
			wantControl = strconv.Itoa(firstFD + i.count)
		}
		if got := b.getenv(envControl); got != wantControl {
			t.Errorf("%+v: the control socket is descriptor %q, want %q", i, got, wantControl)
		}
		if i.supervisor {
			wantSupervisor = strconv.Itoa(firstFD + i.count)
			if i.control {
				wantSupervisor = strconv.Itoa(firstFD + i.count + 1)
			}
		}
		if got := b.getenv(envSupervisor); got != wantSupervisor {
			t.Errorf("%+v: the supervisor's descriptor is %q, want %q", i, got, wantSupervisor)
		}
	}
}

func TestSuccessorsEnvironmentIsOursWithoutWhatWasMeantForUs(t *testing.T) {
	got := inheritance{count: 2, control: true}.environ([]string{
		"LISTEN_PID=1",
		"HOME=/root",
		"LISTEN_FDS=7",
		"LISTEN_FDNAMES=a:b",
		"EMPTY=",
		"LISTEN_PIDFDID=9",
		"LISTEN_FDS=8", // twice
		"WATCHDOG_PID=1",
		"WATCHDOG_USEC=1000",
		"GRACE_CONTROL=3",
		"GRACE_SUPERVISOR=4",
		"NOTIFY_SOCKET=/run/notify",
		"LISTEN_FDS_OF_OURS=x", // another name
		"no equals sign",
		"a=b=c",
	})
	want := []string{
		"HOME=/root",
		"EMPTY=",
		"WATCHDOG_USEC=1000",
		"NOTIFY_SOCKET=/run/notify",
		"LISTEN_FDS_OF_OURS=x",
		"no equals sign",
		"a=b=c",
		"LISTEN_FDS=2",
		"GRACE_CONTROL=5",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A parent whose file is closed to us may be the original; one that is known to be
// something else is not signalled.
func TestParentIsOriginalUnlessItIsKnownToBeAnother(t *testing.T) {
	for p, want := range map[parent]bool{
		{same: true, program: Original}: true,
		{same: true, program: Unknown}:  true,
		{same: true, program: Ours}:     false,
		{same: true, program: Neither}:  false,
		{program: Original}:             false, // a stranger
	} {
		if got := p.original(); got != want {
			t.Errorf("%+v: %v, want %v", p, got, want)
		}
	}
}

func TestUnsetenvRemovesWhatAnnounces(t *testing.T) {
	for _, name := range announcing {
		t.Setenv(name, "1")
	}
	t.Setenv("LISTEN_FDS_OF_OURS", "1")
	unsetenv(announcing...)
	for _, name := range announcing {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is still there", name, v)
		}
	}
	if _, ok := os.LookupEnv("LISTEN_FDS_OF_OURS"); !ok {
		t.Error("a variable that only begins like ours is gone")
	}
}

func FuzzAnnouncement(f *testing.F) {
	f.Add("", "", "", "", "", 1, 0, false)
	f.Add("2", "4711", "web:admin", "", "", 4711, 0, false)
	f.Add("2", "99", "", "5", "6", 4711, 4|2, false)
	f.Add("-1", "", "", "3", "", 4711, 4|2, true)
	f.Add("1000000", "", ":::", "", "", 4711, 4|2, true)
	f.Add("99999999999999999999", "4711", "", "-1", "x", 4711, 0, false)
	f.Fuzz(func(t *testing.T, fds, listenPID, names, control, supervisor string, pid, program int, all bool) {
		env := map[string]string{envFDs: fds, envPID: listenPID, envNames: names, envControl: control, envSupervisor: supervisor}
		// Below 4: a stranger; else the same program, built on this or that.
		from := parent{same: program&4 != 0, program: Program(program & 3)}
		b := newBirth(env)
		b.pid, b.parent = pid, from
		read := func() (announcement, error) { return b.announcement(func(int) bool { return all }) }
		a, err := read()
		if again, errAgain := read(); !reflect.DeepEqual(a, again) || (err == nil) != (errAgain == nil) {
			t.Fatalf("%v: %+v, %v the first time, then %+v, %v", env, a, err, again, errAgain)
		}
		if err != nil || a.origin == Fresh {
			if !reflect.DeepEqual(a, announcement{}) {
				t.Errorf("%v: error %v or nothing to inherit, but %+v", env, err, a)
			}
			return
		}
		if a.count < 0 || fds == "" && a.count != 0 {
			t.Errorf("%v: %d descriptors", env, a.count)
		}
		if len(a.names) > strings.Count(names, ":")+1 {
			t.Errorf("%v: %d names", env, len(a.names))
		}
		switch a.origin {
		case Succeeded:
			if control == "" {
				t.Errorf("%v: a successor without a control socket", env)
			}
		case Activated:
			if control != "" || fds == "" || listenPID != strconv.Itoa(pid) && (listenPID != "" || a.count == 0 || supervisor == "" && !all) {
				t.Errorf("%v: activated, though that was meant for another process than %d", env, pid)
			}
		case SucceededLegacy:
			if control != "" || a.count == 0 || !from.original() || listenPID == strconv.Itoa(pid) {
				t.Errorf("%v: a successor of the old library, parent %+v", env, from)
			}
		default:
			t.Errorf("%v: origin %d", env, a.origin)
		}
	})
}
