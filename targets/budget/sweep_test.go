package budget

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stagebench/stagebench/targets/proc"
)

// Without cgroups, the processes of a dead harness are found by their mark. Those of a living one stay.
func TestSweepKillsMarkedProcesses(t *testing.T) {
	t.Parallel()
	living, err := proc.Self("/")
	if err != nil {
		t.Fatal(err)
	}
	dead := living
	dead.Start++
	started := func(owner proc.Owner) *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		cmd.Env = append(os.Environ(), treeEnv+"="+owner.String()+"-NAME/host/node")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	orphan, ours := started(dead), started(living)
	Sweep(Options{Prefix: prefix(t)})
	if err := orphan.Wait(); err == nil {
		t.Error("the orphan ended by itself")
	}
	if err := ours.Process.Kill(); err != nil {
		t.Errorf("the process of a living harness: %v", err)
	}
	_ = ours.Wait() // its error is the kill
}
