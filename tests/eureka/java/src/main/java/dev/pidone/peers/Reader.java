package dev.pidone.peers;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.InstanceInfo;
import com.netflix.appinfo.MyDataCenterInstanceConfig;
import com.netflix.appinfo.providers.EurekaConfigBasedInstanceInfoProvider;
import com.netflix.discovery.DefaultEurekaClientConfig;
import com.netflix.discovery.DiscoveryClient;
import com.netflix.discovery.shared.Application;

/**
 * The official client of each server that is an argument. Each line of the input, {@code NUMBER APP}, is answered with
 * a line of JSON: what the client of that server has of the application, by instance id. It ends with its input.
 */
public final class Reader {
    public static void main(String[] urls) throws Exception {
        MyDataCenterInstanceConfig instance = new MyDataCenterInstanceConfig();
        ApplicationInfoManager manager = new ApplicationInfoManager(
            instance, new EurekaConfigBasedInstanceInfoProvider(instance).get());
        DiscoveryClient[] clients = new DiscoveryClient[urls.length];
        for (int number = 0; number < urls.length; number++) {
            List<String> servers = List.of(urls[number]);
            clients[number] = new DiscoveryClient(manager, new DefaultEurekaClientConfig() {
                @Override
                public List<String> getEurekaServerServiceUrls(String zone) {
                    return servers;
                }
            });
        }

        ObjectMapper json = new ObjectMapper();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            Application application = clients[Integer.parseInt(words[0])].getApplication(words[1]);
            Map<String, Object> instances = new TreeMap<>();
            if (application != null) {
                for (InstanceInfo found : application.getInstances()) {
                    instances.put(found.getInstanceId(), read(found));
                }
            }
            System.out.println(json.writeValueAsString(instances));
        }
        Runtime.getRuntime().halt(0);
    }

    private static Map<String, Object> read(InstanceInfo found) {
        Map<String, Object> values = new LinkedHashMap<>();
        values.put("status", found.getStatus().name());
        values.put("overridden", found.getOverriddenStatus().name());
        values.put("ip", found.getIPAddr());
        values.put("port", found.isPortEnabled(InstanceInfo.PortType.UNSECURE) ? found.getPort() : null);
        values.put("securePort", found.isPortEnabled(InstanceInfo.PortType.SECURE) ? found.getSecurePort() : null);
        values.put("metadata", found.getMetadata());
        return values;
    }
}
