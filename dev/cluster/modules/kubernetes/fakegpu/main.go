// Command fakegpu is a kubelet device plugin that offers COUNT devices which are always healthy.
//
//	fakegpu RESOURCE COUNT
//
// A container gets an environment variable with the names of its devices, and nothing else.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"k8s.io/klog/v2"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	plugin "k8s.io/kubernetes/pkg/kubelet/cm/devicemanager/plugin/v1beta1"
)

func devices(count int) []*api.Device {
	list := make([]*api.Device, count)
	for i := range list {
		list[i] = &api.Device{ID: fmt.Sprintf("fake-%d", i), Health: api.Healthy}
	}
	return list
}

func allocate(request *api.AllocateRequest, _ map[string]*api.Device) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(container.DevicesIds, ",")},
		})
	}
	return response, nil
}

func run(resource string, count int) error {
	ctx := context.Background()
	socket := api.DevicePluginPath + "fakegpu.sock"
	stub := plugin.NewDevicePluginStub(klog.Background(), devices(count), socket, resource, false, false)
	stub.SetAllocFunc(allocate)
	if err := stub.Start(ctx); err != nil {
		return err
	}
	if err := stub.Register(ctx, api.KubeletSocket, resource, api.DevicePluginPath); err != nil {
		return err
	}
	stub.Watch(ctx, api.KubeletSocket, resource, api.DevicePluginPath) // registers again when the kubelet restarts
	return nil
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: fakegpu RESOURCE COUNT")
	}
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatalf("COUNT: %v", err)
	}
	if err := run(os.Args[1], count); err != nil {
		log.Fatal(err)
	}
}
