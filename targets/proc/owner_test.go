package proc

import (
	"os"
	"os/exec"
	"testing"
)

func TestOwnerRoundTrip(t *testing.T) {
	t.Parallel()
	self, err := Self("/")
	if err != nil {
		t.Fatal(err)
	}
	if self.PID != os.Getpid() || self.Start == 0 || self.Namespace == 0 {
		t.Errorf("self %+v", self)
	}
	for _, text := range []string{self.String(), self.String() + "-x-2"} {
		if owner, ok := ParseOwner(text); owner != self || !ok {
			t.Errorf("%q parsed as %+v, %v", text, owner, ok)
		}
	}
	for _, text := range []string{"", "1", "1-2", "a-2-3", "1-b-3", "1-2-c", "0-2-3", "-1-2-3"} {
		if _, ok := ParseOwner(text); ok {
			t.Errorf("%q parsed", text)
		}
	}
}

func TestOwnerGone(t *testing.T) {
	t.Parallel()
	self, err := Self("/")
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		owner Owner
		want  bool
	}{
		"this process":               {self, false},
		"its pid, started before":    {Owner{self.PID, self.Start - 1, self.Namespace}, true},
		"a dead pid":                 {Owner{dead.Process.Pid, self.Start, self.Namespace}, true},
		"a pid of another namespace": {Owner{dead.Process.Pid, self.Start, self.Namespace + 1}, false},
	} {
		if got := c.owner.Gone("/"); got != c.want {
			t.Errorf("%s: gone = %v", name, got)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	text := "42 (a) S (b) T 7 1 1 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 9 0 5555 1000 77 18446744073709551615 1 1"
	stat, err := parseStat(text)
	if err != nil {
		t.Fatal(err)
	}
	want := Stat{State: 'T', Parent: 7, Ticks: 100, Start: 5555, RSSPages: 77}
	if stat != want {
		t.Errorf("stat %+v, want %+v", stat, want)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", "1 (x) S a 1 1 0 -1 1 1 2 3 4 10 20 30 40 20 0 9 0 5555 1000 77"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}
